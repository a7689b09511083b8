"""Bicubic upsampling as MATLAB's `imresize` does it on images of 8 and 16 bits: the baseline of every table."""

from fractions import Fraction
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

_BAND = 128  # rows

Depth = TypeVar("Depth", np.uint8, np.uint16)


def bicubic_upsample(lr: NDArray[Depth], scale: int) -> NDArray[Depth]:
    """Enlarge an image, exactly.

    Cubic kernel with a = -0.5 (Keys 1981), mirrored border; height first, and like MATLAB rounded half away from zero
    to whole values between the two passes. In bands of rows: memory stays bounded for images of any size.

    Args:
        lr: uint8 or uint16 (h, w, C).
        scale: 1 or more.

    Returns:
        (scale h, scale w, C), of the dtype of `lr`.

    Raises:
        ValueError: `lr` is not uint8 or uint16 with three axes, or is empty.
    """
    if lr.dtype not in (np.uint8, np.uint16) or lr.ndim != 3 or 0 in lr.shape:
        raise ValueError(f"lr must be uint8 or uint16 (h, w, C), not {lr.dtype} {lr.shape}")
    if scale < 1:
        raise ValueError(f"scale must be 1 or more, not {scale}")
    height, width, channels = lr.shape
    result = np.empty((height * scale, width * scale, channels), dtype=lr.dtype)
    padded = _mirrored(lr)
    for top in range(0, height, _BAND):
        tall = _upsample_rows(padded[top : top + _BAND + 4], scale)
        wide = _upsample_rows(_mirrored(tall.swapaxes(0, 1)), scale)
        result[top * scale : top * scale + len(tall)] = wide.swapaxes(0, 1)
    return result


def _mirrored(image: NDArray[Depth]) -> NDArray[Depth]:
    """With two more rows at either end."""
    return np.pad(image, ((2, 2), (0, 0), (0, 0)), mode="symmetric")


def _upsample_rows(image: NDArray[Depth], scale: int) -> NDArray[Depth]:
    """Enlarge along axis 0 what lies between its first and last two rows. Every phase of the output has four taps."""
    size, across, channels = image.shape[0] - 4, image.shape[1], image.shape[2]
    padded = image.astype(np.int32)
    result = np.empty((size * scale, across, channels), dtype=image.dtype)
    # Twice the sum plus the divisor, over twice the divisor: rounding half up in integers. Half away from zero is the
    # same for positive sums, and negative ones clamp to 0 either way.
    divisor = 2 * (2 * scale) ** 3
    for phase in range(scale):
        position = Fraction(2 * phase + 1, 2 * scale) - Fraction(1, 2)  # of the output pixel, in input pixels
        first = position.__floor__() - 1
        total = np.full((size, across, channels), divisor // 2, dtype=np.int32)
        for tap in range(first, first + 4):
            weight = _cubic(abs(position - tap)) * divisor
            if weight:
                total += padded[2 + tap : 2 + tap + size] * np.int32(int(weight))
        total //= divisor
        result[phase::scale] = total.clip(0, np.iinfo(image.dtype).max)
    return result


def _cubic(distance: Fraction) -> Fraction:
    """Keys' cubic convolution kernel, a = -1/2, at a distance of 0 to 2."""
    if distance <= 1:
        return Fraction(3, 2) * distance**3 - Fraction(5, 2) * distance**2 + 1
    return -Fraction(1, 2) * distance**3 + Fraction(5, 2) * distance**2 - 4 * distance + 2
