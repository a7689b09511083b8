"""Which patches a step trains on: a pure function of (seed, step), so any step is reachable without replay.

Plans are made and moved to the device in blocks of many steps; one step takes its row.

Random numbers are counter-based: the number at a position is a hash of (seed, purpose, position), SplitMix64's
finaliser (Steele, Lea & Flood, OOPSLA 2014) over a Weyl sequence. NumPy's and PyTorch's generators have state and may
change between versions; plans must not.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eco_fast.data.rows import BLOCK, KEPT, Row, rows_on
from eco_fast.errors import UserError

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_LOW_32 = np.uint64(0xFFFFFFFF)

_AREA = 480 * 480  # HR pixels that earn an image one patch per epoch: the sub-images of the official recipe
_PATCHES = 65536  # of a block, at most

_ORDER, _CORNER, _REST = 1, 2, 3  # purposes: each has its own stream of numbers


class Plan(NamedTuple):
    """The patches of one batch; int64 tensors `(B,)` except `uniform`."""

    index: Tensor  # type: ignore[assignment]  # of the image; shadows tuple.index
    top: Tensor  # LR pixels
    left: Tensor  # LR pixels
    orientation: Tensor  # 0..7: bit 0 flips left-right, bit 1 flips up-down, then bit 2 transposes
    uniform: Tensor  # float64 in [0, 1), for decisions per sample
    inner_top: Tensor  # where the patch lies in its window, see `window`; LR pixels
    inner_left: Tensor
    # What follows from these, so that nothing is computed on the device.
    window_top: Tensor  # of the window in the image; LR pixels
    window_left: Tensor
    hr_top: Tensor  # top and left in HR pixels
    hr_left: Tensor
    inner_hr_top: Tensor
    inner_hr_left: Tensor

    @classmethod
    def of(cls, row: Tensor) -> "Plan":
        """A plan from its row of a block, int64 `(rows, B)`; views."""
        plan = cls._make(row.unbind())
        return plan._replace(uniform=plan.uniform.view(torch.float64))

    @property
    def row(self) -> Tensor:
        """The reverse of `of`; a copy."""
        return torch.stack([tensor.view(torch.int64) for tensor in self])


PlanOf = Callable[[int], Plan]  # step -> its patches; the same for every call


class Sampler:
    """An endless sequence of patches; step t takes positions t B to (t + 1) B of it, this rank its share of them.

    Image i appears `n_i = max(1, round(h_i w_i / 480^2)) * patches_per_image` times per epoch (HR sizes, halves to
    even), in a permutation keyed by (seed, epoch). Corner, orientation and uniform are keyed by (seed, position).

    With `patches_per_image = k > 1` an image is worth decoding once for its k patches, so they come close together but
    not in one batch: the epoch is cut into groups of B to 2B entries of the permutation, and a group is gone through
    k times in the same order. The k patches of an entry then spread over 2k batches at most, and no batch holds an
    entry twice within an epoch, if there are at least B entries.
    """

    def __init__(
        self,
        heights: Tensor | Sequence[int],
        widths: Tensor | Sequence[int],
        scale: int,
        patch: int,
        batch: int,
        seed: int,
        patches_per_image: int = 1,
        rank: int = 0,
        world_size: int = 1,
        context: int = 0,
    ) -> None:
        """Sizes in LR pixels `(N,)`, `patch` in LR pixels, `batch` of all ranks together, `context` as in `window`.

        Raises:
            ValueError: No image, an image smaller than the patch, or a number out of range.
            UserError: The batch cannot be split evenly between the ranks.
        """
        self._heights = np.asarray(torch.as_tensor(heights).cpu(), dtype=np.int64)
        self._widths = np.asarray(torch.as_tensor(widths).cpu(), dtype=np.int64)
        if len(self._heights) == 0 or min(self._heights.min(), self._widths.min()) < patch:
            raise ValueError(f"every image must be at least {patch} x {patch} LR pixels, and there must be one")
        if min(scale, patch, batch, patches_per_image, world_size) < 1 or not 0 <= rank < world_size or seed < 0:
            raise ValueError("scale, patch, batch, patches_per_image and world_size start at 1, rank and seed at 0")
        if batch % world_size:
            raise UserError(f"batch {batch} cannot be split evenly between {world_size} processes; change data.batch")
        self._patch, self._batch, self._seed, self._copies = patch, batch, seed, patches_per_image
        self._scale = scale
        self._context = context
        share = batch // world_size
        self._mine = np.arange(rank * share, (rank + 1) * share, dtype=np.int64)
        self.block = max(1, min(BLOCK, _PATCHES // share))
        """Steps whose plans are made together."""

        repeats = np.maximum(1, np.rint(self._heights * self._widths * scale**2 / _AREA)).astype(np.int64)
        self._entries = np.repeat(np.arange(len(repeats)), repeats)  # image of every entry
        groups = max(1, len(self._entries) // batch)
        self._group_starts = np.arange(groups + 1, dtype=np.int64) * len(self._entries) // groups
        # Of the last ones: a memory, not a state.
        self._orders: dict[int, NDArray[np.int64]] = {}
        self._rows = lru_cache(maxsize=KEPT)(self._make_rows)

    @property
    def epoch_length(self) -> int:
        """Patches per epoch."""
        return len(self._entries) * self._copies

    def plan(self, step: int) -> Plan:
        """The patches of this rank at a step; the same for every call."""
        number, place = divmod(step, self.block)
        return Plan.of(self._rows(number)[place])

    def on(self, device: torch.device | str) -> Row:
        """The rows of all plans on a device, see `Plan.of`."""
        return rows_on(device, self._rows, self.block)

    def uniforms(self, number: int) -> Tensor:
        """`uniform` of the plans of a block, float64 `(block, B)`."""
        return self._rows(number)[:, Plan._fields.index("uniform")].view(torch.float64)

    def _make_rows(self, number: int) -> Tensor:
        """The plans of a block, int64 `(block, rows, B)`; `uniform` by its bits."""
        steps = np.arange(number * self.block, (number + 1) * self.block, dtype=np.int64)
        position = (steps[:, None] * self._batch + self._mine).reshape(-1)
        index = self._images(position)
        counter = position.astype(np.uint64)
        corner = _hash(_key(self._seed, _CORNER), counter)
        rest = _hash(_key(self._seed, _REST), counter)
        heights, widths = self._heights[index], self._widths[index]
        top = _below(corner >> np.uint64(32), heights - self._patch + 1)
        left = _below(corner & _LOW_32, widths - self._patch + 1)
        inner_top = inner_left = np.zeros_like(top)
        if self._context:
            sizes = torch.from_numpy(heights), torch.from_numpy(widths)
            found = window(torch.from_numpy(top), torch.from_numpy(left), *sizes, self._patch, self._context)[2:]
            inner_top, inner_left = (tensor.numpy() for tensor in found)
        orientation = (rest & np.uint64(7)).astype(np.int64)
        uniform = ((rest >> np.uint64(11)).astype(np.float64) * 2.0**-53).view(np.int64)
        inner = (inner_top, inner_left)
        corners = (top - inner_top, left - inner_left, *(corner * self._scale for corner in (top, left, *inner)))
        rows = np.stack((index, top, left, orientation, uniform, *inner, *corners))
        return torch.from_numpy(rows.reshape(len(rows), self.block, -1).transpose(1, 0, 2).copy())

    def _images(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        epoch, place = np.divmod(position, self.epoch_length)
        slot = place
        if self._copies > 1:
            group = np.searchsorted(self._group_starts * self._copies, place, side="right") - 1
            start = self._group_starts[group]
            slot = start + (place - start * self._copies) % (self._group_starts[group + 1] - start)
        index = np.empty_like(position)
        # Positions rise, so those of an epoch lie side by side.
        epochs = np.arange(epoch[0], epoch[-1] + 2)
        borders = np.searchsorted(epoch, epochs)
        orders = self._orders_of(epochs[:-1])
        for order, first, end in zip(orders, borders[:-1], borders[1:], strict=True):
            index[first:end] = order[slot[first:end]]
        return index

    def _orders_of(self, epochs: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Images of each epoch: the entries, sorted by random keys."""
        new = [epoch for epoch in epochs.tolist() if epoch not in self._orders]
        epoch_keys = _hash(_key(self._seed, _ORDER), np.array(new, dtype=np.uint64))
        keys = _hash(epoch_keys[:, None], np.arange(len(self._entries), dtype=np.uint64))
        made = self._entries[np.argsort(keys, axis=1, kind="stable")]
        orders = self._orders | dict(zip(new, made, strict=True))
        self._orders = {epoch: orders[epoch] for epoch in epochs[-2:].tolist()}  # the next steps go on in these
        return [orders[epoch] for epoch in epochs.tolist()]


def window(
    top: Tensor, left: Tensor, heights: Tensor, widths: Tensor, patch: int, context: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where to cut a patch together with context, so that a filter or a network sees no false border.

    The window has `patch + 2 context` pixels a side and slides to lie inside the image: where it ends at a side of the
    image that side is the true border, elsewhere at least `context` pixels surround the patch. An image without room
    for it gives its whole side (the window is then `min(patch + 2 context, side)` long).

    Args:
        top, left: Corners of the patches, int64 `(B,)`.
        heights, widths: Sizes of their images, int64 `(B,)`.
        patch, context: In the same pixels.

    Returns:
        (window_top, window_left) in the image and (inner_top, inner_left) of the patch in the window, int64 `(B,)`.
    """
    window_top = _slide(top - context, heights, patch + 2 * context)
    window_left = _slide(left - context, widths, patch + 2 * context)
    return window_top, window_left, top - window_top, left - window_left


def _slide(start: Tensor, sides: Tensor, length: int) -> Tensor:
    return torch.minimum(start, sides - length).clamp(min=0)


def _hash(key: NDArray[np.uint64], counter: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """64 random bits per counter: element `counter + 1` of the SplitMix64 sequence that starts at `key`."""
    x = key + (counter + np.uint64(1)) * _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def _key(*words: int) -> NDArray[np.uint64]:
    """One key of several numbers, as a `(1,)` array: NumPy wraps arrays silently, but warns on scalars."""
    key = np.zeros(1, dtype=np.uint64)
    for word in words:
        key = _hash(key, np.array([word], dtype=np.uint64))
    return key


def _below(bits: NDArray[np.uint64], bound: NDArray[np.int64]) -> NDArray[np.int64]:
    """Integers in [0, bound) from 32 random bits, by the high half of a product; the bias is below bound / 2^32."""
    return ((bits * bound.astype(np.uint64)) >> np.uint64(32)).astype(np.int64)
