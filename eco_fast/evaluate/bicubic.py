"""Bicubic upsampling as MATLAB's `imresize` does it on 8-bit images: the baseline of every table."""

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray


def bicubic_upsample(lr: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """Enlarge an 8-bit image, exactly.

    Cubic kernel with a = -0.5 (Keys 1981), mirrored border; height first, and like MATLAB rounded half away from zero
    to 8 bit between the two passes.

    Args:
        lr: uint8 (h, w, C).
        scale: 1 or more.

    Returns:
        uint8 (scale h, scale w, C).

    Raises:
        ValueError: `lr` is not uint8 with three axes, or is empty.
    """
    if lr.dtype != np.uint8 or lr.ndim != 3 or 0 in lr.shape:
        raise ValueError(f"lr must be uint8 (h, w, C), not {lr.dtype} {lr.shape}")
    if scale < 1:
        raise ValueError(f"scale must be 1 or more, not {scale}")
    tall = _upsample_rows(lr, scale)
    return np.ascontiguousarray(_upsample_rows(tall.swapaxes(0, 1), scale).swapaxes(0, 1))


def _upsample_rows(image: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """Enlarge along axis 0. Every phase of the output has its own four taps."""
    size = image.shape[0]
    padded = np.pad(image, ((2, 2), (0, 0), (0, 0)), mode="symmetric").astype(np.int32)
    result = np.empty((size * scale, *image.shape[1:]), dtype=np.uint8)
    # Twice the sum plus the divisor, over twice the divisor: rounding half up in integers. Half away from zero is the
    # same for positive sums, and negative ones clamp to 0 either way.
    divisor = 2 * (2 * scale) ** 3
    for phase in range(scale):
        position = Fraction(2 * phase + 1, 2 * scale) - Fraction(1, 2)  # of the output pixel, in input pixels
        first = position.__floor__() - 1
        total = np.full(image.shape, divisor // 2, dtype=np.int32)
        for tap in range(first, first + 4):
            weight = _cubic(abs(position - tap)) * divisor
            if weight:
                total += padded[2 + tap : 2 + tap + size] * np.int32(int(weight))
        total //= divisor
        result[phase::scale] = total.clip(0, 255)
    return result


def _cubic(distance: Fraction) -> Fraction:
    """Keys' cubic convolution kernel, a = -1/2, at a distance of 0 to 2."""
    if distance <= 1:
        return Fraction(3, 2) * distance**3 - Fraction(5, 2) * distance**2 + 1
    return -Fraction(1, 2) * distance**3 + Fraction(5, 2) * distance**2 - 4 * distance + 2
