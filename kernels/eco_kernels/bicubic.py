"""The bicubic of MATLAB's `imresize` for integer scales: taps, borders and banded resize matrices.

For a downscale by an integer every output pixel has the same weights, and they are small rationals: the antialiased
cubic kernel (a = -0.5, Keys 1981) stretched by the scale and sampled at the pixel centres. Kept as integers over a
common divisor they make the 8-bit filter exact in fp32: every product and partial sum is an integer below 2^24.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

SCALES = (2, 3, 4)
BORDERS = ("symmetric", "replicate")
ROUNDINGS = ("matlab", "none")

TAPS: dict[int, tuple[int, ...]] = {
    2: (-3, -9, 29, 111, 111, 29, -9, -3),
    3: (-1, -2, 0, 9, 21, 27, 21, 9, 0, -2, -1),
    4: (-7, -45, -75, -49, 93, 399, 745, 987, 987, 745, 399, 93, -49, -75, -45, -7),
}
DIVISOR: dict[int, int] = {scale: sum(taps) for scale, taps in TAPS.items()}
"""256, 81 and 4096: the taps of a scale sum to its divisor."""
FIRST_TAP: dict[int, int] = {scale: -(len(taps) - scale) // 2 for scale, taps in TAPS.items()}
"""Input position of the first tap of output pixel o, relative to `scale * o`: -3, -4 and -6."""

REACH = 2
"""Low-resolution pixels at an image side that a border rule can touch; further inside no tap leaves the image."""

# Output rows (or columns) per banded matrix. Wide bands waste products on zeros, narrow ones starve the matrix product.
_BAND = 16


def reflect(index: Tensor, size: int, border: str) -> Tensor:
    """Map out-of-image positions into `0 .. size - 1`.

    Args:
        index: integer tensor of positions, any shape.
        size: number of pixels along the axis.
        border: "symmetric" mirrors with the edge pixel repeated, as MATLAB does since 2006 (images smaller than the
            filter are mirrored again and again); "replicate" repeats the edge pixel.
    """
    if border == "replicate":
        return index.clamp(0, size - 1)
    index = index.remainder(2 * size)
    return torch.where(index < size, index, 2 * size - 1 - index)


def tap_positions(size: int, scale: int, border: str) -> Tensor:
    """Input positions that each output pixel reads.

    Returns:
        int64 `(size // scale, K)` on the CPU, in the order of `TAPS[scale]`.
    """
    outputs = torch.arange(size // scale).unsqueeze(1)
    return reflect(scale * outputs + FIRST_TAP[scale] + torch.arange(len(TAPS[scale])), size, border)


class Band(NamedTuple):
    """Output pixels `start .. stop` as a product of `matrix` with input pixels `first .. last`."""

    start: int
    stop: int
    first: int
    last: int
    matrix: Tensor
    """`(stop - start, last - first)`, taps over the divisor."""


@lru_cache(maxsize=64)
def bands(size: int, scale: int, border: str, dtype: torch.dtype, device: torch.device) -> tuple[Band, ...]:
    """The downscale along an axis of `size` pixels, cut into bands of rows so that few of the products are with zero.

    The weights are divided here. That keeps 8-bit results exact: 256 and 4096 are powers of two, and for 81 no sum of
    8-bit values lies nearer than 1/162 to a rounding tie, far more than the fp32 error.
    """
    return tuple(_bands(size, scale, border, dtype, device))


def _bands(size: int, scale: int, border: str, dtype: torch.dtype, device: torch.device) -> Iterator[Band]:
    positions = tap_positions(size, scale, border)
    taps = torch.tensor(TAPS[scale], dtype=torch.float64) / DIVISOR[scale]
    # Outputs from `head` to `tail` read no position outside the image: full bands among them share one matrix.
    head, tail = REACH, len(positions) - REACH
    inner: Tensor | None = None
    for start in range(0, len(positions), _BAND):
        stop = min(start + _BAND, len(positions))
        shared = stop - start == _BAND and start >= head and stop <= tail
        reads = positions[start:stop]
        first, last = int(reads.min()), int(reads.max()) + 1
        matrix = inner if shared else None
        if matrix is None:
            matrix = torch.zeros(stop - start, last - first, dtype=torch.float64)
            matrix.scatter_add_(1, reads - first, taps.expand(reads.shape))
            matrix = matrix.to(device=device, dtype=dtype)
        inner = matrix if shared else inner
        yield Band(start, stop, first, last, matrix)


@lru_cache(maxsize=64)
def interleaved_bands(
    size: int, scale: int, border: str, channels: int, dtype: torch.dtype, device: torch.device
) -> tuple[Band, ...]:
    """`bands` for an axis whose pixels hold `channels` interleaved values: each weight becomes a diagonal block."""
    blocks: dict[int, Tensor] = {}
    result = []
    for band in bands(size, scale, border, dtype, device):
        key = id(band.matrix)
        if key not in blocks:
            blocks[key] = torch.kron(band.matrix, torch.eye(channels, dtype=dtype, device=device)).t().contiguous()
        result.append(band._replace(matrix=blocks[key]))
    return tuple(result)
