"""Images that do not fit into memory: a network sees tiles of them, with what lies around each.

Networks of convolutions alone tell how far they see (`receptive_radius`); with that much around it a tile equals the
whole image's part. Others, whose attention or pooling looks at the whole image, get `UNKNOWN_RADIUS` pixels, which is
close and not equal; they see the whole image wherever it fits.
"""

from collections.abc import Iterator
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from eco_fast.data.memory import free_memory

UNKNOWN_RADIUS = 32  # LR pixels
SMALLEST_TILE = 32  # LR pixels: smaller ones compute mostly what is thrown away
_ALWAYS_FITS = 128 * 128  # LR pixels
_PROBE = 32  # LR pixels a side
_SHARE_OF_FREE = 0.8
_LIVE = 3  # activations of the largest size that exist at one time: what a layer reads, writes, and works with

_bytes_per_pixel: "WeakKeyDictionary[nn.Module, float]" = WeakKeyDictionary()


class Tile(NamedTuple):
    """A window of an image, and the part of it that is kept; LR pixels."""

    top: int
    left: int
    height: int
    width: int
    inner_top: int  # in the window
    inner_left: int
    inner_height: int
    inner_width: int


def receptive_radius(network: nn.Module) -> int | None:
    """LR pixels that a pixel of the output sees on each side; None where that may be the whole image."""
    return getattr(network, "receptive_radius", None)


def tiles(height: int, width: int, side: int, overlap: int) -> Iterator[Tile]:
    """Windows of one size that cover an image; all in LR pixels.

    The image is split evenly into parts of at most `side` pixels a side, and `overlap` pixels are added where an image
    goes on. A window slides to lie inside the image: where it ends at a side of the image that is the true border.
    """
    for y, rows in _parts(height, side):
        for x, columns in _parts(width, side):
            (top, tall), (left, wide) = _window(y, height, side, overlap), _window(x, width, side, overlap)
            yield Tile(top, left, tall, wide, y - top, x - left, rows, columns)


def _parts(length: int, side: int) -> list[tuple[int, int]]:
    """Start and length of even parts."""
    step = -(-length // -(-length // side))
    return [(start, min(step, length - start)) for start in range(0, length, step)]


def _window(start: int, length: int, side: int, overlap: int) -> tuple[int, int]:
    """Start and length of what a part is computed from; of two parts each has one neighbour, of more up to two."""
    parts = _parts(length, side)
    size = min(parts[0][1] + overlap * min(len(parts) - 1, 2), length)
    return min(max(start - overlap, 0), length - size), size


def tile_that_fits(network: nn.Module, height: int, width: int, device: torch.device) -> int | None:
    """The side of tiles for which memory is free on the device, None if the whole image fits. LR pixels."""
    if height * width <= _ALWAYS_FITS:
        return None
    pixels = _SHARE_OF_FREE * free_memory(device) / bytes_per_pixel(network, device)
    if height * width <= pixels:
        return None
    return max(SMALLEST_TILE, int(pixels**0.5) - 2 * overlap_of(network))


def overlap_of(network: nn.Module) -> int:
    """LR pixels around a tile."""
    radius = receptive_radius(network)
    return UNKNOWN_RADIUS if radius is None else radius


def bytes_per_pixel(network: nn.Module, device: torch.device) -> float:
    """Memory that inference takes per LR pixel, by the largest output of a layer; measured once, on a small image."""
    if network not in _bytes_per_pixel:
        largest = 0

        def look(module: nn.Module, inputs: object, output: object) -> None:
            nonlocal largest
            if isinstance(output, Tensor):
                largest = max(largest, output.numel() * output.element_size())

        hooks = [module.register_forward_hook(look) for module in network.modules()]
        try:
            network(torch.zeros((1, 3, _PROBE, _PROBE), device=device))
        finally:
            for hook in hooks:
                hook.remove()
        _bytes_per_pixel[network] = _LIVE * largest / _PROBE**2
    return _bytes_per_pixel[network]
