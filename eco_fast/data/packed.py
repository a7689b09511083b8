"""The source `packed`: DALI reads the patches of a plan, and nothing else, from the arrays of a prepared store."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from eco_fast.data.dali import Dali, default_threads, load_dali, next_tensors, numbered
from eco_fast.data.flat import TrainingSet
from eco_fast.data.sampler import Plan
from eco_fast.data.source import Needs, NeedsOf, PatchBatch, PlanOf
from eco_fast.errors import UserError

_SEGMENT = 1024  # steps per pipeline: DALI takes its list of files as a whole, and holds Python up while it does
_PREFETCH = 4  # batches that DALI is ahead


class PackedFiles(NamedTuple):
    """The arrays on disk, one file per image and kind: `.npy`, uint8 `(H, W, 3)`, C order."""

    scale: int
    heights: Tensor  # LR pixels, int64 (N,)
    widths: Tensor
    hr: list[str]
    lr: list[str]
    centroid: list[str] | None = None
    centroid_lr: list[str] | None = None


class Packed:
    """Reads regions of `.npy` files ahead of the training step.

    A DALI reader goes through a fixed list of files in order; the list is the plan's order of images, and a callback
    gives the corners. So the steps are cut into segments with a pipeline each, made in the background while the
    segment before is used. A segment ends where the needs change: what is not needed is not read.
    """

    def __init__(
        self,
        files: PackedFiles,
        plan: PlanOf,
        needs: NeedsOf,
        steps: int,
        patch: int,
        device: torch.device | str = "cpu",
        threads: int | None = None,
        segment: int = _SEGMENT,
    ) -> None:
        """Nothing is read yet.

        Args:
            files: The arrays; indices of the plan refer to these lists.
            plan, needs: Pure functions of the step. They are called in a thread, so nothing else should call them.
            steps: The end of training: nothing is read for this step and later ones.
            patch: LR pixels.
            device: Where the patches are wanted.
            threads: Of DALI.
            segment: Steps per pipeline.

        Raises:
            UserError: DALI is not installed.
        """
        self._dali = load_dali("packed")
        self._files, self._plan, self._needs = files, plan, needs
        self._steps, self._patch, self._segment = steps, patch, segment
        self._device, self._threads = numbered(device), threads or default_threads()
        self._wrap = PatchBatch(len(plan(0).index), patch, files.scale, self._device)
        self._builder = ThreadPoolExecutor(1, thread_name_prefix="packed")
        self._current: _Segment | None = None
        self._ahead: Future[_Segment] | None = None

    def fetch(self, step: int) -> tuple[TrainingSet, Plan]:
        """See `Source`."""
        if not 0 <= step < self._steps:
            raise ValueError(f"step {step} is not in 0 .. {self._steps - 1}")
        if self._current is None or step != self._current.step:
            self._current = self._segment_at(step)
        segment = self._current
        plan = segment.plans[step - segment.first]
        try:
            tensors = next_tensors(segment.pipeline, self._device)
        except RuntimeError as error:
            raise UserError(f"cannot read patches: {_reason(error)}; run eco-fast prepare --verify") from error
        segment.step += 1
        if segment.step == segment.end:
            self._current = None  # its threads end here, not when the next segment has begun
        return self._wrap(dict(zip(segment.kinds, tensors, strict=True)), plan)

    def free_centroids(self) -> None:
        """See `Source`: none are held."""

    def close(self) -> None:
        """See `Source`."""
        self._builder.shutdown(cancel_futures=True)
        self._current = self._ahead = None

    def _segment_at(self, step: int) -> "_Segment":
        """The segment that begins at a step, usually made already; the one after it is begun."""
        ahead = self._ahead.result() if self._ahead is not None else None
        if ahead is None or ahead.first != step:
            ahead = self._builder.submit(self._build, step).result()
        self._ahead = self._builder.submit(self._build, ahead.end) if ahead.end < self._steps else None
        return ahead

    def _build(self, first: int) -> "_Segment":
        needs, end = self._needs(first), first + 1
        while end < min(first + self._segment, self._steps) and self._needs(end) == needs:
            end += 1
        plans = [self._plan(step) for step in range(first, end)]
        kinds = [kind for kind, needed in zip(Needs._fields, needs, strict=True) if needed]
        pipeline = _pipeline(self._dali, self._files, plans, kinds, self._patch, self._device, self._threads)
        return _Segment(first, end, plans, kinds, pipeline)


class _Segment:
    """Some consecutive steps that read the same kinds, and the pipeline that reads them."""

    def __init__(self, first: int, end: int, plans: list[Plan], kinds: list[str], pipeline: Any) -> None:
        self.first, self.end, self.plans, self.kinds, self.pipeline = first, end, plans, kinds, pipeline
        self.step = first  # the pipeline's next


def _pipeline(
    dali: Dali,
    files: PackedFiles,
    plans: list[Plan],
    kinds: list[str],
    patch: int,
    device: torch.device,
    threads: int,
) -> Any:
    """A built pipeline with one output `(B, side, side, 3)` per kind, for as many runs as there are plans."""
    order = torch.stack([plan.index for plan in plans]).flatten().tolist()
    corners = torch.stack([torch.stack([plan.top, plan.left], 1) for plan in plans]).numpy().astype(np.int32)
    pipeline = dali.Pipeline(
        batch_size=corners.shape[1], num_threads=threads, device_id=device.index, prefetch_queue_depth=_PREFETCH
    )
    with pipeline:
        outputs, starts = [], {}
        for kind in kinds:
            paths = getattr(files, kind)
            if paths is None:
                raise ValueError(f"the store has no {kind}")
            factor = 1 if kind.endswith("lr") else files.scale
            if factor not in starts:
                starts[factor] = dali.fn.external_source(source=corners * factor, batch=True)
            patches = dali.fn.readers.numpy(
                files=[paths[i] for i in order],
                roi_start=starts[factor],
                roi_shape=[patch * factor, patch * factor],
                roi_axes=[0, 1],
                cache_header_information=True,
                lazy_init=True,
            )
            outputs.append(patches.gpu() if device.type == "cuda" else patches)
        pipeline.set_outputs(*outputs)
    pipeline.build()
    return pipeline


def _reason(error: RuntimeError) -> str:
    """DALI's own message out of its report of several lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "]" in line or ".npy" in line), lines[0] if lines else "DALI failed")
