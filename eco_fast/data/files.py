"""The source `files`: DALI decodes the original images while training, and every decoded image serves many patches."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from eco_fast.data.dali import default_threads, load_dali
from eco_fast.data.decode import Decoder
from eco_fast.data.flat import TrainingSet
from eco_fast.data.notes import Notes
from eco_fast.data.pixels import Image
from eco_fast.data.sampler import Plan, window
from eco_fast.data.source import NeedsOf, PatchBatch, PlanOf
from eco_fast.errors import UserError
from eco_kernels import bicubic_downsample

_REACH = 2  # LR pixels: what MATLAB's bicubic sees around a patch


class ImageFiles(NamedTuple):
    """The original images, one file per image, upright."""

    scale: int
    hr_heights: Tensor  # HR pixels, int64 (N,)
    hr_widths: Tensor
    hr: list[str]
    lr: list[str] | None = None  # the user's own LR; None makes the exact 8-bit bicubic of HR

    @property
    def heights(self) -> Tensor:
        """LR pixels, int64 (N,)."""
        return self.hr_heights // self.scale

    @property
    def widths(self) -> Tensor:
        """LR pixels, int64 (N,)."""
        return self.hr_widths // self.scale


class Place(NamedTuple):
    """Where a patch goes, and its corner in LR pixels."""

    step: int
    sample: int
    top: int
    left: int


class Visit(NamedTuple):
    """One decoding of an image and all patches that are cut from it then."""

    image: int
    places: list[Place]


class Files:
    """Decodes every image once for all its patches of a group of batches (see `Sampler`), in threads, ahead of time.

    What is decoded when follows from the plan alone: an image that a step needs and whose patch is not cut yet is
    decoded for that step, and with it all its patches of the `2 k` batches over which its k patches spread. The
    decoded image is dropped at once; its patches wait for their step. So a resumed run decodes what its next batches
    need, and nothing twice.
    """

    def __init__(
        self,
        files: ImageFiles,
        plan: PlanOf,
        needs: NeedsOf,
        steps: int,
        patch: int,
        patches_per_image: int,
        device: torch.device | str = "cpu",
        threads: int | None = None,
        decoder: Decoder | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            files: The images; indices of the plan refer to these lists.
            plan, needs: Pure functions of the step.
            steps: The end of training: nothing is read for this step and later ones.
            patch: LR pixels.
            patches_per_image: The sampler's k.
            device: Where the patches are wanted.
            threads: Images that are decoded side by side.
            decoder: Files to pixels.

        Raises:
            UserError: DALI is not installed.
        """
        load_dali("files")  # Pillow alone would be too slow
        self._cutter = _Cutter(files, patch, decoder or Decoder())
        self._plan, self._needs = plan, needs
        self._steps, self._lead = steps, patches_per_image
        self._horizon = 2 * patches_per_image
        self._device, self._threads = torch.device(device), threads or default_threads()
        self._wrap = PatchBatch(len(plan(0).index), patch, files.scale, self._device)
        # One OpenMP thread each: idle teams of theirs would make every parallel loop of the training thread, too, sleep
        # and be woken where it now waits spinning, which costs it three times as long.
        self._pool = ThreadPoolExecutor(
            self._threads, thread_name_prefix="files", initializer=torch.set_num_threads, initargs=(1,)
        )
        self._next = -1  # the step that `_visits` is in line with
        self._visits: Iterator[tuple[int, Visit | None]] = iter(())
        self._begun = 0  # steps before this one have all their patches under way
        self._patches: dict[tuple[int, int], tuple[Future[dict[str, Tensor]], int]] = {}

    def fetch(self, step: int) -> tuple[TrainingSet, Plan]:
        """See `Source`."""
        if not 0 <= step < self._steps:
            raise ValueError(f"step {step} is not in 0 .. {self._steps - 1}")
        if step != self._next:
            self._restart(step)
        self._next = -1  # until it has gone well
        # One pass through a group ahead: the next group's images are decoded while this one's patches last.
        self._begin(min(step + 1 + self._lead, self._steps))
        plan = self._plan(step)
        parts = [self._patches.pop((step, sample)) for sample in range(len(plan.index))]
        cut = [(visit.result(), number) for visit, number in parts]
        needed = self._needs(step)._asdict()
        patches = {
            kind: self._stack([patch[kind][number] for patch, number in cut]) for kind in cut[0][0] if needed[kind]
        }
        self._next = step + 1
        return self._wrap(patches, plan)

    def free_centroids(self) -> None:
        """See `Source`: none are held."""

    def close(self) -> None:
        """See `Source`."""
        self._drop()
        self._pool.shutdown()

    def _stack(self, patches: list[Tensor]) -> Tensor:
        if self._device.type == "cpu":
            return torch.stack(patches)
        pinned = torch.empty((len(patches), *patches[0].shape), dtype=torch.uint8, pin_memory=True)
        return torch.stack(patches, out=pinned).to(self._device, non_blocking=True)

    def _restart(self, step: int) -> None:
        self._drop()
        self._begun = step
        self._visits = visits(self._plan, step, self._steps, self._horizon)

    def _drop(self) -> None:
        for future, _ in self._patches.values():
            future.cancel()
        self._patches.clear()
        self._next = -1

    def _begin(self, end: int) -> None:
        """Have all images decoded that the steps before `end` need."""
        while self._begun < end:
            step, visit = next(self._visits)
            if visit is None:
                self._begun = step + 1
                continue
            future = self._pool.submit(self._cutter, visit)
            for number, place in enumerate(visit.places):
                self._patches[place.step, place.sample] = future, number


def visits(plan: PlanOf, first: int, steps: int, horizon: int) -> Iterator[tuple[int, Visit | None]]:
    """What is decoded for which step from `first` on, in order; None closes a step.

    A visit takes with it all patches of its image in the next `horizon` steps, and later visits leave those out.
    """
    waiting: dict[int, deque[Place]] = {}
    plans: deque[list[int]] = deque()
    known = first
    for step in range(first, steps):
        while known < min(step + horizon + 1, steps):
            index, top, left = (column.tolist() for column in plan(known)[:3])
            for sample, image in enumerate(index):
                waiting.setdefault(image, deque()).append(Place(known, sample, top[sample], left[sample]))
            plans.append(index)
            known += 1
        for image in plans.popleft():
            # Places of a later step alone belong to a later visit: this step's patch is cut already.
            if image in waiting and waiting[image][0].step == step:
                yield step, Visit(image, list(waiting.pop(image)))
        yield step, None


class _Cutter:
    """Decodes an image and cuts the patches of a visit; called from several threads."""

    def __init__(self, files: ImageFiles, patch: int, decode: Decoder) -> None:
        self._files, self._patch, self._decode = files, patch, decode
        self._heights, self._widths = files.heights, files.widths

    def __call__(self, visit: Visit) -> dict[str, Tensor]:
        """`hr` `(k, scale patch, scale patch, 3)` and `lr` `(k, patch, patch, 3)`, uint8, not oriented."""
        files, image = self._files, visit.image
        hr = self._read(files.hr[image], int(files.hr_heights[image]), int(files.hr_widths[image]))
        if files.lr is None:
            return self._with_bicubic(hr, visit)
        lr = self._read(files.lr[image], int(self._heights[image]), int(self._widths[image]))
        corners = [(place.top, place.left) for place in visit.places]
        return {"hr": _squares(hr, corners, self._patch, files.scale), "lr": _squares(lr, corners, self._patch)}

    def _read(self, path: str, height: int, width: int) -> Image:
        image = self._decode(Path(path), Notes()).pixels  # what is converted was said when the files were listed
        if image.shape[:2] != (height, width):
            raise UserError(
                f"{path} is {image.shape[1]} x {image.shape[0]} pixels now and was {width} x {height} when training "
                "began; put the old file back, or begin anew"
            )
        return image

    def _with_bicubic(self, hr: Image, visit: Visit) -> dict[str, Tensor]:
        """HR patches, and their LR as the whole image's LR has it: filtered with what surrounds them."""
        scale, patch = self._files.scale, self._patch
        height, width = self._heights[visit.image : visit.image + 1], self._widths[visit.image : visit.image + 1]
        top, left = (torch.tensor([place[i] for place in visit.places]) for i in (2, 3))
        corners = window(top, left, height, width, patch, _REACH)
        row, column, inner_row, inner_column = (corner.tolist() for corner in corners)
        rows, columns = (min(patch + 2 * _REACH, int(side)) * scale for side in (height, width))
        windows = torch.stack(
            [
                torch.from_numpy(hr[y * scale : y * scale + rows, x * scale : x * scale + columns])
                for y, x in zip(row, column, strict=True)
            ]
        )
        lr = bicubic_downsample(windows.permute(0, 3, 1, 2), scale, rounding="matlab").permute(0, 2, 3, 1)
        inner = list(enumerate(zip(inner_row, inner_column, strict=True)))
        side = patch * scale
        return {
            "hr": torch.stack([windows[i, y * scale :, x * scale :][:side, :side] for i, (y, x) in inner]),
            "lr": torch.stack([lr[i, y : y + patch, x : x + patch] for i, (y, x) in inner]),
        }


def _squares(image: Image, corners: Sequence[tuple[int, int]], patch: int, scale: int = 1) -> Tensor:
    """Patches `(k, scale patch, scale patch, 3)`; corners and `patch` in LR pixels."""
    side = patch * scale
    return torch.stack(
        [torch.from_numpy(image[y * scale : y * scale + side, x * scale : x * scale + side]) for y, x in corners]
    )
