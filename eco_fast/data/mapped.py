"""The source `mapped`: the arrays of a store stay on disk, and threads cut patches out of them ahead of the step."""

from concurrent.futures import Future
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from eco_fast.data.arrays import map_array
from eco_fast.data.pixels import Image
from eco_fast.data.sampler import Plan, PlanOf
from eco_fast.data.source import Fetched, ReadsOf, SideBySide, default_threads, workers
from eco_fast.errors import UserError

_MAPS = 4096  # arrays that are mapped at one time; each costs a piece of the heap, and 65,530 are what Linux allows


class ArrayFiles(NamedTuple):
    """The arrays on disk, one file per image and kind: `.npy`, uint8 `(H, W, 3)`, C order."""

    scale: int
    heights: Tensor  # LR pixels, int64 (N,)
    widths: Tensor
    hr: list[str]
    lr: list[str]
    centroid: list[str] | None = None
    centroid_lr: list[str] | None = None


class Mapped:
    """Maps every array into memory and copies patches out of it: the system reads the pages they lie on, no others.

    A batch is cut by one thread, as many batches at once as there are threads. On a GPU they go through pinned memory.
    """

    def __init__(
        self,
        files: ArrayFiles,
        plan: PlanOf,
        reads: ReadsOf,
        steps: int,
        patch: int,
        context: int = 0,
        device: torch.device | str = "cpu",
        threads: int | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            files: The arrays; indices of the plan refer to these lists.
            plan, reads: Pure functions of the step.
            steps: The end of training: nothing is read for this step and later ones.
            patch, context: LR pixels of a patch, and around it in a window.
            device: Where the patches are wanted.
            threads: That cut.
        """
        self._files, self._plan, self._reads, self._steps = files, plan, reads, steps
        self._side_by_side = SideBySide(len(plan(0).index), patch, context, files.scale, device)
        self._array = lru_cache(_MAPS)(self._map)
        self._ahead = threads or default_threads()  # batches
        self._pool = workers("mapped", self._ahead)
        self._waiting: dict[int, tuple[tuple[str, ...], Future[Tensor]]] = {}

    def fetch(self, step: int) -> Fetched:
        """See `Source`."""
        if not 0 <= step < self._steps:
            raise ValueError(f"step {step} is not in 0 .. {self._steps - 1}")
        if step not in self._waiting:
            self._drop()
        for later in range(step, min(step + 1 + self._ahead, self._steps)):
            if later not in self._waiting:
                plan, kinds = self._plan(later), self._reads(later)
                # Memory is not taken by the threads: for those the current GPU is the first one.
                whole = self._side_by_side.room(kinds)
                self._waiting[later] = kinds, self._pool.submit(self._cut, plan, kinds, whole)
        kinds, future = self._waiting.pop(step)
        return self._side_by_side.fetched(future.result(), kinds)

    def free_centroids(self) -> None:
        """See `Source`: none are held."""

    def close(self) -> None:
        """See `Source`."""
        self._drop()
        self._pool.shutdown()
        self._array.cache_clear()

    def _drop(self) -> None:
        for _, future in self._waiting.values():
            future.cancel()
        self._waiting.clear()

    def _cut(self, plan: Plan, kinds: tuple[str, ...], whole: Tensor) -> Tensor:
        """Fill memory from `room` with the patches of a batch."""
        index = plan.index.tolist()
        for kind, part in self._side_by_side.parts(whole, kinds, plan).items():
            rows, columns = plan.top, plan.left
            if kind == "window":
                rows, columns = plan.window_top, plan.window_left
            elif kind in ("hr", "centroid"):
                rows, columns = plan.hr_top, plan.hr_left
            side, out = part.shape[1], part.numpy()
            corners = zip(index, rows.tolist(), columns.tolist(), strict=True)
            for sample, (image, y, x) in enumerate(corners):
                out[sample] = self._array("lr" if kind == "window" else kind, image)[y : y + side, x : x + side]
        return whole

    def _map(self, kind: str, image: int) -> Image:
        """An array in the memory of the process; the file need not stay open."""
        files = self._files
        paths: list[str] | None = getattr(files, kind)
        if paths is None:
            raise ValueError(f"the store has no {kind}")
        factor = files.scale if kind in ("hr", "centroid") else 1
        least = (int(files.heights[image]) * factor, int(files.widths[image]) * factor, 3)
        try:
            array = map_array(Path(paths[image]))
            if any(have < need for have, need in zip(array.shape, least, strict=True)):
                raise ValueError(f"it holds {array.shape} where {least} or more was prepared")
        except (OSError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"cannot read patches: {paths[image]}: {reason}; run eco-fast prepare --verify STORE"
            ) from error
        return array
