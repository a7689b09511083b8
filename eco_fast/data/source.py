"""Where patches come from: what every source hands out, and what a step cuts from it."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from math import prod
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from eco_fast.data.flat import FlatImages, TrainingSet
from eco_fast.data.rows import Row
from eco_fast.data.sampler import Plan
from eco_kernels import gather_mix, gather_patches

ReadsOf = Callable[[int], tuple[str, ...]]  # step -> the kinds that it reads, of `KINDS`; the same for every call

_MAX_THREADS = 8  # patches come faster than any network takes them long before

KINDS = ("lr", "centroid_lr", "hr", "centroid", "window")
"""What a step may read of a patch. A window is LR too, with so much around it that an online teacher sees no edge."""


class Patches(NamedTuple):
    """The patches of a batch where a source has them: whole images on the device, or patches that are cut already.

    Patches that are cut lie side by side as images of their own. Either way the same kernels orient and blend them,
    which makes all sources agree to the bit.
    """

    images: Mapping[str, FlatImages]  # by kind
    plan: Plan  # on the device of the images, and of their corners
    patch: int  # LR pixels
    scale: int
    window: Tensor | None = None  # (B, 3, side, side) uint8, channels_last, not oriented

    def target(self, kind: str) -> Tensor:
        """Cut and orient `hr` or `centroid`.

        Returns:
            `(B, 3, scale patch, scale patch)` uint8 in channels_last layout: bytes of the images, not copied again.

        Raises:
            ValueError: They were not read.
        """
        plan = self.plan
        return _cut(self._of(kind), plan, plan.hr_top, plan.hr_left, plan.orientation, self.patch * self.scale)

    def input(self, alpha: Tensor, reads: Sequence[str] = ("lr", "centroid_lr")) -> Tensor:
        """The student's input, `alpha * lr + (1 - alpha) * centroid_lr`, in one go.

        Args:
            alpha: Weight of the real image, fp32, 0-dim or `(B,)`.
            reads: Where it lacks one of the two, every weight of that one is 0: it need not be there.

        Returns:
            `(B, 3, patch, patch)` fp32 in [0, 1], channels_last.

        Raises:
            ValueError: One that is needed was not read, or none is needed.
        """
        used = [self._of(kind) for kind in ("lr", "centroid_lr") if kind in reads]
        if not used:
            raise ValueError("an input needs LR, centroid LR or both")
        # A lone one stands in for its partner, whose weight is 0: one code path, hence the same bits on both sides of
        # a phase change.
        real, centroid = used[0], used[-1]
        plan = self.plan
        return gather_mix(
            real.data,
            centroid.data,
            real.offsets,
            real.widths,
            plan.index,
            plan.top,
            plan.left,
            plan.orientation,
            self.patch,
            alpha,
        )

    def _of(self, kind: str) -> FlatImages:
        if kind not in self.images:
            raise ValueError(f"this batch holds no {kind}")
        return self.images[kind]


class Fetched(NamedTuple):
    """What a step needs of its source, in one tensor: the host has done its part.

    What is left is work on the device, the same one for all steps that read the same kinds.
    """

    data: Tensor  # any type; on the device, or pinned on its host
    cut: Callable[[Tensor], Patches]  # of the data on the device

    def patches(self, device: torch.device | str = "cpu") -> Patches:
        """The patches; the copy to the device, if any, is ordered on the current stream."""
        return self.cut(self.data.to(device, non_blocking=True))


class Source(Protocol):
    """Gives the patches of a step. All sources give the same for the same plan, bit for bit.

    Steps may be fetched in any order; going on from one to the next is the fast way.
    """

    def fetch(self, step: int) -> Fetched:
        """What a step needs for patches of the kinds that it reads.

        Raises:
            UserError: A file cannot be read.
        """
        ...

    def free_centroids(self) -> None:
        """From here on no step needs centroids: let go of those that are held."""
        ...

    def close(self) -> None:
        """Stop its threads; nothing can be fetched afterwards."""
        ...


class Resident:
    """The source `resident`: all images lie on the device. Nothing is copied or waited for in a step."""

    def __init__(self, images: TrainingSet, rows: Row, reads: ReadsOf, patch: int, context: int = 0) -> None:
        """`images` on the device that trains, `rows` of the plans too; `patch` and `context` in LR pixels."""
        self._images, self._scale = images.by_kind(), images.scale
        self._rows, self._reads = rows, reads
        self._patch, self._context = patch, context

    def fetch(self, step: int) -> Fetched:
        """See `Source`."""
        return Fetched(self._rows(step), partial(self._patches, self._reads(step)))

    def _patches(self, kinds: tuple[str, ...], row: Tensor) -> Patches:
        plan, window = Plan.of(row), None
        if "window" in kinds:
            side = self._patch + 2 * self._context
            upright = torch.zeros_like(plan.orientation)
            window = _cut(self._images["lr"], plan, plan.window_top, plan.window_left, upright, side)
        return Patches(self._images, plan, self._patch, self._scale, window)

    def free_centroids(self) -> None:
        """Let go of what only the teacher's part of training reads."""
        self._images = {kind: images for kind, images in self._images.items() if kind in ("lr", "hr")}

    def close(self) -> None:
        """See `Source`."""


class Layout(NamedTuple):
    """Where a batch lies in one piece of memory: its plan, then its patches."""

    plan: int  # bytes of the plan's row
    shapes: dict[str, tuple[int, int, int, int]]  # by kind: (B, side, side, 3)
    starts: dict[str, int]
    size: int  # bytes in all

    def parts(self, whole: Tensor) -> dict[str, Tensor]:
        """The patches of each kind; views."""
        return {kind: whole[self.starts[kind] :][: prod(s)].view(s) for kind, s in self.shapes.items()}


class SideBySide:
    """Makes `Patches` of patches that were cut on the host, by one copy to the device for all kinds and the plan."""

    def __init__(self, batch: int, patch: int, context: int, scale: int, device: torch.device | str) -> None:
        """`patch` and `context` in LR pixels."""
        self._batch, self._patch, self._scale, self._device = batch, patch, scale, torch.device(device)
        self._window = patch + 2 * context
        self._index = torch.arange(batch, device=self._device)
        self._corner = torch.zeros_like(self._index)
        self._layout, self._as_images = cache(self._new_layout), cache(self._squares)

    def room(self, kinds: tuple[str, ...]) -> Tensor:
        """Memory of the host for a batch of these kinds, uint8 `(bytes,)`, pinned for a GPU."""
        return torch.empty(self._layout(kinds).size, dtype=torch.uint8, pin_memory=self._device.type == "cuda")

    def parts(self, whole: Tensor, kinds: tuple[str, ...], plan: Plan) -> dict[str, Tensor]:
        """What of that memory is to be filled, of each kind `(B, side, side, 3)`; the plan is in its place then."""
        layout = self._layout(kinds)
        whole[: layout.plan].view(torch.int64).view(len(plan), -1).copy_(plan.row)
        return layout.parts(whole)

    def fetched(self, whole: Tensor, kinds: tuple[str, ...]) -> Fetched:
        """The batch in that memory."""
        return Fetched(whole, partial(self._patches, kinds))

    def _patches(self, kinds: tuple[str, ...], whole: Tensor) -> Patches:
        layout = self._layout(kinds)
        parts = layout.parts(whole)
        window = parts.pop("window", None)
        images = {kind: FlatImages(part.view(-1), *self._as_images(part.shape[1])) for kind, part in parts.items()}
        plan = Plan.of(whole[: layout.plan].view(torch.int64).view(-1, self._batch))
        here = plan._replace(
            index=self._index, top=self._corner, left=self._corner, hr_top=self._corner, hr_left=self._corner
        )
        return Patches(images, here, self._patch, self._scale, None if window is None else window.permute(0, 3, 1, 2))

    def _new_layout(self, kinds: tuple[str, ...]) -> Layout:
        sides = {kind: self._patch * (self._scale if kind in ("hr", "centroid") else 1) for kind in kinds}
        if "window" in sides:
            sides["window"] = self._window
        plan = len(Plan._fields) * self._batch * 8
        starts, end = {}, _aligned(plan)
        for kind, side in sides.items():
            starts[kind] = end
            end += _aligned(self._batch * side * side * 3)
        shapes = {kind: (self._batch, side, side, 3) for kind, side in sides.items()}
        return Layout(plan, shapes, starts, end)

    def _squares(self, side: int) -> tuple[Tensor, Tensor, Tensor]:
        """Offsets, heights and widths of the patches as images."""
        sides = torch.full_like(self._index, side)
        return self._index * (side * side * 3), sides, sides


def _aligned(size: int) -> int:
    """Kernels read wide words from such a place on."""
    return -(-size // 256) * 256


def default_threads() -> int:
    """Threads that read ahead: the cores this process may use, within reason."""
    return min(len(os.sched_getaffinity(0)), _MAX_THREADS)


def workers(name: str, threads: int | None = None) -> ThreadPoolExecutor:
    """Threads that read ahead, as many as this process has cores for.

    With one OpenMP thread each: idle teams of theirs would make every parallel loop of the training thread, too, sleep
    and be woken where it now waits spinning, which costs it three times as long.
    """
    return ThreadPoolExecutor(
        threads or default_threads(), thread_name_prefix=name, initializer=torch.set_num_threads, initargs=(1,)
    )


def _cut(images: FlatImages, plan: Plan, top: Tensor, left: Tensor, orientation: Tensor, side: int) -> Tensor:
    """Squares of the plan's images, oriented: `(B, 3, side, side)` channels_last; all in pixels of these images."""
    squares = gather_patches(images.data, images.offsets, images.widths, plan.index, top, left, orientation, side)
    return squares.permute(0, 3, 1, 2)
