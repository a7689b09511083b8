"""How an image batch lies in memory, as the filter sees it: planes of dense lines.

A *plane* is what is filtered as one image: an image with its `C` channels interleaved (channels_last), or one channel
of it with `C = 1` (NCHW). A *line* holds the `W * C` values of a plane's row.
"""

from typing import NamedTuple

from torch import Tensor

from eco_kernels.images import memory_format


class Layout(NamedTuple):
    """How the planes of an image batch lie in memory."""

    planes: int
    """Planes per image: 1 for channels_last, else the channels."""
    channels: int
    """Values per pixel of a plane."""
    units: tuple[int, int, int, int]
    """Length of a line, then strides of image, plane and row, in units of `unit` elements."""
    unit: int

    @classmethod
    def of(cls, x: Tensor) -> "Layout | None":
        """The layout of `(B, C, H, W)`; None unless its lines are dense, as those of both formats and cut-outs are."""
        _, channels, _, width = x.shape
        image, plane, row, pixel = x.stride()
        if plane == 1 and pixel == channels:
            strides = (width * channels, image, 0, row)
            return cls(1, channels, *_in_units(strides))
        if pixel == 1:
            return cls(channels, 1, *_in_units((width, image, plane, row)))
        return None


def _in_units(lengths: tuple[int, int, int, int]) -> tuple[tuple[int, int, int, int], int]:
    unit = next(unit for unit in (16, 8, 4, 2, 1) if all(length % unit == 0 for length in lengths))
    line, image, plane, row = (length // unit for length in lengths)
    return (line, image, plane, row), unit


def dense_lines(x: Tensor) -> tuple[Tensor, Layout]:
    """The images and their layout; a copy of them where the lines are not dense."""
    layout = Layout.of(x)
    if layout is None:
        x = x.contiguous(memory_format=memory_format(x))
        layout = Layout.of(x)
    assert layout is not None
    return x, layout


def check_offsets(name: str, x: Tensor) -> None:
    """Offsets inside an image are 32-bit in the kernels; those of an image in its batch are 64-bit."""
    reach = sum((size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True))
    if reach >= 2**31:
        raise ValueError(f"{name} has an image that spans {reach + 1} elements; the kernels take up to {2**31}")
