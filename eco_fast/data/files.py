"""The source `files`: DALI decodes the original images while training, and every decoded image serves many patches."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from eco_fast.data.dali import load_dali
from eco_fast.data.decode import Decoder
from eco_fast.data.notes import Notes
from eco_fast.data.pixels import Image
from eco_fast.data.sampler import PlanOf, window
from eco_fast.data.source import Fetched, ReadsOf, SideBySide, workers
from eco_fast.errors import UserError
from eco_kernels import bicubic_downsample
from eco_kernels.bicubic import REACH


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
    """Where a patch goes, and where it lies in its image, in LR pixels."""

    step: int
    sample: int
    top: int
    left: int
    window_top: int
    window_left: int


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
        reads: ReadsOf,
        steps: int,
        patch: int,
        patches_per_image: int,
        context: int = 0,
        device: torch.device | str = "cpu",
        threads: int | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            files: The images; indices of the plan refer to these lists.
            plan, reads: Pure functions of the step. There are no stored centroids to read.
            steps: The end of training: nothing is read for this step and later ones.
            patch: LR pixels.
            patches_per_image: The sampler's k.
            context: LR pixels around a patch in a window.
            device: Where the patches are wanted.
            threads: Images that are decoded side by side.

        Raises:
            UserError: DALI is not installed.
        """
        load_dali("files")  # Pillow alone would be too slow
        self._cutter = _Cutter(files, reads, patch, patch + 2 * context)
        self._plan, self._reads = plan, reads
        self._steps, self._lead = steps, patches_per_image
        self._horizon = 2 * patches_per_image
        self._side_by_side = SideBySide(len(plan(0).index), patch, context, files.scale, device)
        self._pool = workers("files", threads)
        self._next = -1  # the step that `_visits` is in line with
        self._visits: Iterator[tuple[int, Visit | None]] = iter(())
        self._begun = 0  # steps before this one have all their patches under way
        self._patches: dict[tuple[int, int], tuple[Future[dict[str, Tensor]], int]] = {}

    def fetch(self, step: int) -> Fetched:
        """See `Source`."""
        if not 0 <= step < self._steps:
            raise ValueError(f"step {step} is not in 0 .. {self._steps - 1}")
        if step != self._next:
            self._restart(step)
        self._next = -1  # until it has gone well
        # One pass through a group ahead: the next group's images are decoded while this one's patches last.
        self._begin(min(step + 1 + self._lead, self._steps))
        plan, kinds = self._plan(step), self._reads(step)
        visits_of_step = [self._patches.pop((step, sample)) for sample in range(len(plan.index))]
        cut = [(visit.result(), number) for visit, number in visits_of_step]
        whole = self._side_by_side.room(kinds)
        for kind, part in self._side_by_side.parts(whole, kinds, plan).items():
            torch.stack([patches[kind][number] for patches, number in cut], out=part)
        self._next = step + 1
        return self._side_by_side.fetched(whole, kinds)

    def free_centroids(self) -> None:
        """See `Source`: none are held."""

    def close(self) -> None:
        """See `Source`."""
        self._drop()
        self._pool.shutdown()

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
            p = plan(known)
            index = p.index.tolist()
            corners = (p.top, p.left, p.window_top, p.window_left)
            for sample, (image, *corner) in enumerate(zip(index, *(c.tolist() for c in corners), strict=True)):
                waiting.setdefault(image, deque()).append(Place(known, sample, *corner))
            plans.append(index)
            known += 1
        for image in plans.popleft():
            # Places of a later step alone belong to a later visit: this step's patch is cut already.
            if image in waiting and waiting[image][0].step == step:
                yield step, Visit(image, list(waiting.pop(image)))
        yield step, None


class _Cutter:
    """Decodes an image and cuts the patches of a visit; called from several threads."""

    def __init__(self, files: ImageFiles, reads: ReadsOf, patch: int, window: int) -> None:
        self._files, self._reads, self._patch, self._window = files, reads, patch, window
        self._heights, self._widths = files.heights, files.widths
        self._decode = Decoder()

    def __call__(self, visit: Visit) -> dict[str, Tensor]:
        """Of every kind that a step of the visit reads: `(k, side, side, 3)` uint8, not oriented."""
        files, image, scale = self._files, visit.image, self._files.scale
        kinds = {kind for place in visit.places for kind in self._reads(place.step)}
        hr = self._read(files.hr[image], int(files.hr_heights[image]), int(files.hr_widths[image]))
        lr = None
        if files.lr is not None and kinds & {"lr", "window"}:
            lr = self._read(files.lr[image], int(self._heights[image]), int(self._widths[image]))
        corners = [(place.top, place.left) for place in visit.places]
        squares = {"lr": (corners, self._patch)}
        squares["window"] = [(place.window_top, place.window_left) for place in visit.places], self._window
        cut = {"hr": _squares(hr, corners, self._patch, scale)} if "hr" in kinds else {}
        for kind in kinds & squares.keys():
            at, side = squares[kind]
            cut[kind] = self._bicubic(hr, image, at, side) if lr is None else _squares(lr, at, side)
        return cut

    def _read(self, path: str, height: int, width: int) -> Image:
        image = self._decode(Path(path), Notes()).pixels  # what is converted was said when the files were listed
        if image.shape[:2] != (height, width):
            raise UserError(
                f"{path} is {image.shape[1]} x {image.shape[0]} pixels now and was {width} x {height} when training "
                "began; put the old file back, or begin again"
            )
        return image

    def _bicubic(self, hr: Image, image: int, corners: Sequence[tuple[int, int]], side: int) -> Tensor:
        """Squares of the whole image's LR, made of what they see alone."""
        scale = self._files.scale
        height, width = self._heights[image : image + 1], self._widths[image : image + 1]
        top, left = torch.tensor(corners).T
        row, column, inner_row, inner_column = window(top, left, height, width, side, REACH)
        rows, columns = (min(side + 2 * REACH, int(length)) * scale for length in (height, width))
        seen = torch.stack(
            [
                torch.from_numpy(hr[y * scale : y * scale + rows, x * scale : x * scale + columns])
                for y, x in zip(row.tolist(), column.tolist(), strict=True)
            ]
        )
        lr = bicubic_downsample(seen.permute(0, 3, 1, 2), scale, rounding="matlab").permute(0, 2, 3, 1)
        inner = zip(lr, inner_row.tolist(), inner_column.tolist(), strict=True)
        return torch.stack([one[y : y + side, x : x + side] for one, y, x in inner])


def _squares(image: Image, corners: Sequence[tuple[int, int]], patch: int, scale: int = 1) -> Tensor:
    """Patches `(k, scale patch, scale patch, 3)`; corners and `patch` in LR pixels."""
    side = patch * scale
    return torch.stack(
        [torch.from_numpy(image[y * scale : y * scale + side, x * scale : x * scale + side]) for y, x in corners]
    )
