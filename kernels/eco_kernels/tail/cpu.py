"""The tail in plain PyTorch: a convolution of the whole, and products of matrices that add what edges differ by.

Images are `(B, h, w, channels)` here, and `(B, w, h, channels)` where the lines at the left and right are meant.
"""

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from eco_kernels.tail import TAPS
from eco_kernels.tail.chain import compose as compose
from eco_kernels.tail.chain import compose_backward as compose_backward

_REACH = TAPS // 2
_CORNERS = tuple(product((1, 2), repeat=2))


class Edge(NamedTuple):
    """What kernels at an edge meet: so many lines of the image. The taps for more of them are zero for any weights.

    A convolution before a shuffle sees less of what lies outside than the one behind it: per shuffle it is one line.
    """

    depth: int

    @classmethod
    def of(cls, scale: int) -> "Edge":
        """For a picture of that scale; by the most shuffles that it can have."""
        shuffles, factor = 0, 2
        while scale > 1:
            if scale % factor == 0:
                shuffles, scale = shuffles + 1, scale // factor
            else:
                factor += 1
        return cls(min(max(shuffles, 1), _REACH + 1))

    @property
    def at(self) -> tuple[slice, slice, slice]:
        """What is met of an image: everywhere, at the first place, at the last."""
        return slice(None), slice(0, self.depth), slice(-self.depth, None)

    @property
    def taps(self) -> tuple[slice, slice, slice]:
        """The part of the kernels that meets it."""
        return slice(None), slice(_REACH, _REACH + self.depth), slice(_REACH + 1 - self.depth, _REACH + 1)


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
    x, edge = _dense(features), Edge.of(scale)
    values = F.conv2d(x.permute(0, 3, 1, 2), _whole(kernels), biases[0, 0], padding=_REACH).permute(0, 2, 3, 1)
    for turned, places in _sides():
        seen, weight = _lines(_turned(x, turned), edge), _line_kernels(kernels, turned, edge)
        added = torch.baddbmm(torch.stack([biases[at] for at in places]).unsqueeze(1), seen, weight)
        target = _turned(values, turned)
        for line, of_line in zip((0, -1), added, strict=True):
            target[:, line] += of_line.view(target[:, line].shape)
    corners = torch.bmm(_squares(x, edge), _corner_kernels(kernels, edge))
    for (y, x_), of_corner in zip(_CORNERS, corners, strict=True):
        values[:, 1 - y, 1 - x_] += of_corner + biases[y, x_]
    batch, height, width, _ = values.shape
    picture = values.reshape(batch, height, width, scale, scale, 3).transpose(2, 3).contiguous()
    return picture.view(batch, height * scale, width * scale, 3).permute(0, 3, 1, 2)


def convolve_backward(grad: Tensor, features: Tensor, kernels: Tensor, scale: int) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients with respect to features, kernels and biases; `grad` is that of the picture."""
    x, edge = _dense(features), Edge.of(scale)
    batch, height, width, _ = x.shape
    squares = grad.permute(0, 2, 3, 1).reshape(batch, height, scale, width, scale, 3)
    of_values = squares.transpose(2, 3).reshape(batch, height, width, -1)
    of_kernels, of_biases = torch.zeros_like(kernels), kernels.new_empty(kernels.shape[:3])
    # The whole.
    found, of_weight, of_biases[0, 0] = torch.ops.aten.convolution_backward(
        of_values.permute(0, 3, 1, 2),
        x.permute(0, 3, 1, 2),
        _whole(kernels),
        [of_values.shape[-1]],
        stride=[1, 1],
        padding=[_REACH, _REACH],
        dilation=[1, 1],
        transposed=False,
        output_padding=[0, 0],
        groups=1,
        output_mask=[True, True, True],
    )
    of_kernels[0, 0] = of_weight.permute(0, 2, 3, 1)
    of_x = found.permute(0, 2, 3, 1)
    # First and last row, first and last column.
    for turned, places in _sides():
        turned_values = _turned(of_values, turned)
        lines = torch.stack((turned_values[:, 0], turned_values[:, -1])).flatten(1, 2)
        of_lines = lines.transpose(1, 2) @ _lines(_turned(x, turned), edge)
        for at, of_line, of_bias in zip(places, of_lines, lines.sum(1), strict=True):
            of_taps = of_line.unflatten(1, (edge.depth, TAPS, -1))
            of_kernels[at][:, edge.taps[at[0]], edge.taps[at[1]]] = of_taps.transpose(1, 2) if turned else of_taps
            of_biases[at] = of_bias
        _add_lines(_turned(of_x, turned), lines @ _line_kernels(kernels, turned, edge).transpose(1, 2), edge)
    # Corners.
    ends = torch.stack([of_values[:, 1 - y, 1 - x_] for y, x_ in _CORNERS])
    of_corners = ends.transpose(1, 2) @ _squares(x, edge)
    of_squares = ends @ _corner_kernels(kernels, edge).transpose(1, 2)
    for (y, x_), of_corner, of_bias, of_square in zip(_CORNERS, of_corners, ends.sum(1), of_squares, strict=True):
        of_kernels[y, x_][:, edge.taps[y], edge.taps[x_]] = of_corner.unflatten(1, (edge.depth, edge.depth, -1))
        of_biases[y, x_] = of_bias
        of_x[:, edge.at[y], edge.at[x_]] += of_square.view(batch, edge.depth, edge.depth, -1)
    of_features = of_x.contiguous().permute(0, 3, 1, 2)
    return of_features.to(features.dtype), of_kernels, of_biases


def _dense(features: Tensor) -> Tensor:
    return features.float().permute(0, 2, 3, 1).contiguous()


def _whole(kernels: Tensor) -> Tensor:
    """The kernel of every pixel as `conv2d` takes it, channels_last."""
    return kernels[0, 0].permute(0, 3, 1, 2)


def _sides() -> Iterator[tuple[bool, tuple[tuple[int, int], tuple[int, int]]]]:
    """Whether an image is to be turned, so that its edges are rows; and the places of the kernels of the two."""
    yield False, ((1, 0), (2, 0))
    yield True, ((0, 1), (0, 2))


def _turned(image: Tensor, turned: bool) -> Tensor:
    return image.transpose(1, 2) if turned else image


def _lines(image: Tensor, edge: Edge) -> Tensor:
    """What each pixel of the first and of the last line sees: `(2, B w, depth x 5 x C)`."""
    lines = F.pad(torch.stack((image[:, edge.at[1]], image[:, edge.at[2]])), (0, 0, _REACH, _REACH))
    return lines.unfold(3, TAPS, 1).permute(0, 1, 3, 2, 5, 4).flatten(3).flatten(1, 2)


def _line_kernels(kernels: Tensor, turned: bool, edge: Edge) -> Tensor:
    """The kernels of both, `(2, depth x 5 x C, N)`."""
    if turned:
        parts = [kernels[0, place][:, :, edge.taps[place]].transpose(1, 2) for place in (1, 2)]
    else:
        parts = [kernels[place, 0][:, edge.taps[place]] for place in (1, 2)]
    return torch.stack(parts).flatten(2).transpose(1, 2)


def _add_lines(of_image: Tensor, of_lines: Tensor, edge: Edge) -> None:
    """Add what the pixels of both lines give back, `(2, B w, depth x 5 x C)`, to the gradient of an image."""
    batch, _, width, channels = of_image.shape
    of_lines = of_lines.view(2, batch, width, edge.depth, TAPS, channels)
    wide = of_lines.new_zeros(2, batch, edge.depth, width + 2 * _REACH, channels)
    for tap in range(TAPS):
        wide[:, :, :, tap : tap + width] += of_lines[:, :, :, :, tap].transpose(2, 3)
    for place, lines in zip((1, 2), wide[:, :, :, _REACH:-_REACH], strict=True):
        of_image[:, edge.at[place]] += lines


def _squares(image: Tensor, edge: Edge) -> Tensor:
    """What the four corners see: `(4, B, depth^2 C)`."""
    return torch.stack([image[:, edge.at[y], edge.at[x]].flatten(1) for y, x in _CORNERS])


def _corner_kernels(kernels: Tensor, edge: Edge) -> Tensor:
    """The kernels of the corners, `(4, depth^2 C, N)`."""
    parts = [kernels[y, x][:, edge.taps[y], edge.taps[x]].flatten(1) for y, x in _CORNERS]
    return torch.stack(parts).transpose(1, 2)
