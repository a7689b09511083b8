"""PSNR and SSIM on the luma channel, by one protocol that is printed with every number.

Protocols in use differ by tenths of a dB. This one is that of the published super-resolution tables: output rounded to
8 bit, BT.601 luma in floating point, a border as wide as the scale cropped, SSIM after Wang et al. 2004.

Of a grey image there are two. EDSR, RCAN and those after them measure it as RGB, whose luma has 219 / 255 of its range:
1.32 dB more. Bicubic, SRCNN and VDSR were measured on the grey values, and tables go on quoting these rows.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_PROTOCOL = "8-bit output, BT.601 luma ({}), border = scale cropped, SSIM 11x11 Gaussian sigma 1.5"
PROTOCOL = _PROTOCOL.format("grey as RGB")
GREY_PROTOCOL = _PROTOCOL.format("grey files: grey values")

SSIM_WINDOW = 11
_SIGMA = 1.5
_C1 = (0.01 * 255) ** 2
_C2 = (0.03 * 255) ** 2

# Output pixels per side of an SSIM tile: small enough for its four maps to stay in the cache, and for few of the
# products to be with the zeros of the band matrix.
_TILE = 64

_Bytes = NDArray[np.uint8]
_Plane = NDArray[np.float64]


def luma(rgb: _Bytes) -> _Plane:
    """BT.601 luma, unrounded: 16 + (65.481 R + 128.553 G + 24.966 B) / 255.

    Args:
        rgb: uint8 (H, W, 3).

    Returns:
        float64 (H, W) in [16, 235].
    """
    y: _Plane = np.multiply(rgb[..., 0], 65.481 / 255, dtype=np.float64)
    y += rgb[..., 1] * (128.553 / 255)
    y += rgb[..., 2] * (24.966 / 255)
    y += 16
    return y


def psnr_y(sr: _Bytes, hr: _Bytes, border: int, *, grey: bool = False) -> float:
    """PSNR of the luma in dB, infinite for equal images.

    Args:
        sr: uint8 (H, W, 3).
        hr: uint8 (H, W, 3).
        border: Pixels cropped on each side: the scale.
        grey: Compare grey values, 0 to 255, in place of the luma.

    Raises:
        ValueError: The images differ in shape, are not uint8 RGB, or nothing is left inside the border.
    """
    return _psnr(*_inner_luma(sr, hr, border, grey))


def ssim_y(sr: _Bytes, hr: _Bytes, border: int, *, grey: bool = False) -> float:
    """Mean structural similarity of the luma (Wang et al. 2004), over windows that lie inside the cropped image.

    Takes and raises what `psnr_y` does; inside the border at least 11 x 11 pixels must be left.
    """
    return _ssim(*_inner_luma(sr, hr, border, grey))


def both(sr: _Bytes, hr: _Bytes, border: int, *, grey: bool = False) -> tuple[float, float]:
    """`psnr_y` and `ssim_y`, with the luma computed once."""
    planes = _inner_luma(sr, hr, border, grey)
    return _psnr(*planes), _ssim(*planes)


def _inner_luma(sr: _Bytes, hr: _Bytes, border: int, grey: bool) -> tuple[_Plane, _Plane]:
    for name, image in (("sr", sr), ("hr", hr)):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"{name} must be uint8 (H, W, 3), not {image.dtype} {image.shape}")
    if sr.shape != hr.shape:
        raise ValueError(f"sr is {sr.shape} and hr is {hr.shape}; they must have one shape")
    height, width = sr.shape[:2]
    if border < 0 or min(height, width) <= 2 * border:
        raise ValueError(f"a border of {border} leaves nothing of {height} x {width} pixels")
    inner = np.s_[border : height - border, border : width - border]
    planes = luma(sr[inner]), luma(hr[inner])
    if grey:  # the full range again: of equal R, G and B it is their value
        for plane in planes:
            plane -= 16
            plane *= 255 / 219
    return planes


def _psnr(a: _Plane, b: _Plane) -> float:
    difference = (a - b).ravel()
    error = float(difference @ difference) / difference.size
    return 10 * math.log10(255**2 / error) if error else math.inf


def _ssim(a: _Plane, b: _Plane) -> float:
    height, width = (side - SSIM_WINDOW + 1 for side in a.shape)
    if min(height, width) < 1:
        raise ValueError(f"SSIM needs {SSIM_WINDOW} x {SSIM_WINDOW} pixels inside the border, there are {a.shape}")
    total = 0.0
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            rows, columns = min(_TILE, height - top), min(_TILE, width - left)
            tile = np.s_[top : top + rows + SSIM_WINDOW - 1, left : left + columns + SSIM_WINDOW - 1]
            total += _ssim_sum(a[tile], b[tile])
    return total / (height * width)


def _ssim_sum(a: _Plane, b: _Plane) -> float:
    """Sum of the SSIM map over the valid region of a tile."""
    maps = np.stack([a, b, a * a + b * b, a * b])
    down, across = (_gaussian_band(side - SSIM_WINDOW + 1) for side in a.shape)
    mean_a, mean_b, squares, product = down @ maps @ across.T
    mean_product, mean_squares = mean_a * mean_b, mean_a * mean_a + mean_b * mean_b
    luminance = (2 * mean_product + _C1) / (mean_squares + _C1)
    structure = (2 * (product - mean_product) + _C2) / (squares - mean_squares + _C2)
    return float(np.vdot(luminance, structure))


@lru_cache(maxsize=2 * _TILE)
def _gaussian_band(outputs: int) -> _Plane:
    """The Gaussian window along one axis as a matrix (outputs, outputs + 10)."""
    distance = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    window = np.exp(-0.5 * (distance / _SIGMA) ** 2)
    window /= window.sum()
    band = np.zeros((outputs, outputs + SSIM_WINDOW - 1))
    for i in range(outputs):
        band[i, i : i + SSIM_WINDOW] = window
    return band
