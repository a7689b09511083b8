"""Images that do not fit into memory: a network sees tiles of them, with what lies around each.

Networks of convolutions alone tell how far they see (`receptive_radius`); with that much around it a tile equals the
whole image's part. Others, whose attention or pooling looks at the whole image, get `UNKNOWN_RADIUS` pixels, which is
close and not equal; they see the whole image wherever it fits.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from weakref import finalize

from torch import Tensor, UntypedStorage, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

UNKNOWN_RADIUS = 32  # LR pixels
SMALLEST_TILE = 32  # LR pixels: smaller ones compute mostly what is thrown away
_SHARE_OF_FREE = 0.8
_SCRATCH = 2  # times what tensors take: convolutions on CPUs work with copies of what they read and write


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


def tile_that_fits(height: int, width: int, overlap: int, bytes_per_pixel: float, free: int) -> int | None:
    """The side of tiles for which memory is free, None if the whole image fits. LR pixels, bytes."""
    pixels = _SHARE_OF_FREE * max(free, 0) / bytes_per_pixel
    if height * width <= pixels:
        return None
    return max(SMALLEST_TILE, int(pixels**0.5) - 2 * overlap)


def overlap_of(network: nn.Module) -> int:
    """LR pixels around a tile."""
    radius = receptive_radius(network)
    return UNKNOWN_RADIUS if radius is None else radius


def peak_bytes(work: Callable[[], object]) -> int:
    """The most memory that tensors made by some work take at one time, with what its operators need besides."""
    with _Live() as live:
        work()
    return _SCRATCH * live.peak


class _Live(TorchDispatchMode):
    """Adds up the memory of tensors that were made inside and are still held."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(output):
            key = storage._cdata
            if key not in given and key not in self._sizes:
                self._sizes[key] = storage.nbytes()
                self._now += storage.nbytes()
                finalize(storage, self._drop, key)
        self.peak = max(self.peak, self._now)
        return output

    def _drop(self, key: int) -> None:
        self._now -= self._sizes.pop(key)


def _storages(tree: object) -> list[UntypedStorage]:
    """What holds the tensors among arguments or results."""
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
