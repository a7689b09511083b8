"""The tail in plain PyTorch: a convolution of the whole, and small ones that add what edges and corners differ by."""

from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from eco_kernels.tail import TAPS

_REACH = TAPS // 2


class _Piece(NamedTuple):
    """An edge or a corner, or the whole."""

    place: tuple[int, int]
    """Its kernel's place among the nine."""
    pixels: tuple[slice, slice]
    """Rows and columns where its kernel applies."""
    reads: tuple[slice, slice]
    """Rows and columns that the kernel meets there."""
    taps: tuple[slice, slice]
    """The part of the kernel that does not lie in the zeros around the features."""
    padding: tuple[int, int]


_PIXELS = (slice(None), slice(0, 1), slice(-1, None))
_READS = (slice(None), slice(0, _REACH + 1), slice(-_REACH - 1, None))
_TAPS = (slice(None), slice(_REACH, None), slice(0, _REACH + 1))
_PADDING = (_REACH, 0, 0)

_WHOLE, *_EDGES = [
    _Piece((y, x), *((part[y], part[x]) for part in (_PIXELS, _READS, _TAPS, _PADDING)))  # type: ignore[arg-type]
    for y, x in product(range(3), repeat=2)
]


def convolve(features: Tensor, kernels: Tensor, biases: Tensor, scale: int) -> Tensor:
    """Convolve to `3 scale^2` channels with kernels of their own at the edges, and shuffle.

    Args:
        features: `(B, C, h, w)` of any float type; zeros surround them.
        kernels: fp32 `(3, 3, 3 scale^2, 5, 5, C)`, output channels in the order (row, column, colour) of the pixel in
            its square. `kernels[0, 0]` applies to every pixel; `kernels[y, x]` is added in the first row (y = 1) or
            the last (y = 2), and in the first column (x = 1) or the last (x = 2); where both are above 0, in that
            corner. The taps of a kernel that lie outside the features there are not read.
        biases: fp32 `(3, 3, 3 scale^2)`, likewise.
        scale: Pixels of the picture per feature and side.

    Returns:
        fp32 `(B, 3, scale h, scale w)` channels_last.
    """
    x = _dense(features.float())
    channels = F.conv2d(x, _weight(kernels, _WHOLE), biases[0, 0], padding=_WHOLE.padding)
    for piece in _EDGES:
        added = F.conv2d(x[_at(piece.reads)], _weight(kernels, piece), biases[piece.place], padding=piece.padding)
        channels[_at(piece.pixels)] += added
    batch, _, height, width = x.shape
    squares = channels.permute(0, 2, 3, 1).reshape(batch, height, width, scale, scale, 3)
    picture = squares.transpose(2, 3).contiguous()
    return picture.view(batch, height * scale, width * scale, 3).permute(0, 3, 1, 2)


def convolve_backward(grad: Tensor, features: Tensor, kernels: Tensor, scale: int) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients with respect to features, kernels and biases; `grad` is that of the picture."""
    batch, _, height, width = features.shape
    squares = grad.permute(0, 2, 3, 1).reshape(batch, height, scale, width, scale, 3)
    channels = squares.transpose(2, 3).reshape(batch, height, width, -1).permute(0, 3, 1, 2)
    x = _dense(features.float())
    of_kernels, of_biases = torch.zeros_like(kernels), kernels.new_empty(kernels.shape[:3])
    of_features = torch.empty(0)
    for piece in (_WHOLE, *_EDGES):
        of_x, of_weight, of_bias = torch.ops.aten.convolution_backward(
            channels[_at(piece.pixels)],
            x[_at(piece.reads)],
            _weight(kernels, piece),
            [channels.shape[1]],
            stride=[1, 1],
            padding=piece.padding,
            dilation=[1, 1],
            transposed=False,
            output_padding=[0, 0],
            groups=1,
            output_mask=[True, True, True],
        )
        if piece is _WHOLE:
            of_features = of_x
        else:
            of_features[_at(piece.reads)] += of_x
        of_kernels[piece.place][:, *piece.taps] = of_weight.permute(0, 2, 3, 1)
        of_biases[piece.place] = of_bias
    return _dense(of_features).to(features.dtype), of_kernels, of_biases


def _weight(kernels: Tensor, piece: _Piece) -> Tensor:
    """A kernel as `conv2d` takes it, channels_last."""
    return kernels[piece.place][:, *piece.taps].permute(0, 3, 1, 2)


def _at(rows_and_columns: tuple[slice, slice]) -> tuple[slice, ...]:
    return (slice(None), slice(None), *rows_and_columns)


def _dense(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
