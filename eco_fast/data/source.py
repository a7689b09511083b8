"""Where patches come from: what every source does, the resident one, and what the others share."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from eco_fast.data.flat import FlatImages, TrainingSet
from eco_fast.data.sampler import Plan


class Needs(NamedTuple):
    """Which kinds of patches a step reads; the others are not fetched."""

    lr: bool
    centroid_lr: bool
    hr: bool
    centroid: bool


PlanOf = Callable[[int], Plan]  # step -> its patches; the same for every call
NeedsOf = Callable[[int], Needs]  # step -> what it reads; the same for every call


class Source(Protocol):
    """Where the patches of a step come from. All sources give the same patches for the same plan, bit for bit.

    Steps may be fetched in any order; going on from one to the next is the fast way.
    """

    def fetch(self, step: int) -> tuple[TrainingSet, Plan]:
        """The images that `make_batch` cuts the step's patches from, and the plan that says where.

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

    def __init__(self, images: TrainingSet, plan: PlanOf) -> None:
        """`images` on the device that trains."""
        self.images, self._plan = images, plan

    def fetch(self, step: int) -> tuple[TrainingSet, Plan]:
        """See `Source`."""
        return self.images, self._plan(step)

    def free_centroids(self) -> None:
        """Let go of what only the teacher's part of training reads."""
        self.images = replace(self.images, centroid=None, centroid_lr=None)

    def close(self) -> None:
        """See `Source`."""


class PatchBatch:
    """Wraps patches that were cut already, but not oriented, as a training set whose images they are.

    Orientation and blend then happen in the same kernels for every source, which makes the sources agree to the bit.
    """

    def __init__(self, batch: int, patch: int, scale: int, device: torch.device | str) -> None:
        """`patch` in LR pixels."""
        self._scale, self._device = scale, device
        self._index = torch.arange(batch, device=device)
        self._corner = torch.zeros_like(self._index)
        sides = {"lr": patch, "centroid_lr": patch, "hr": patch * scale, "centroid": patch * scale}
        self._sides = {kind: torch.full_like(self._index, side) for kind, side in sides.items()}
        self._offsets = {kind: self._index * (side * side * 3) for kind, side in sides.items()}

    def __call__(self, patches: Mapping[str, Tensor], plan: Plan) -> tuple[TrainingSet, Plan]:
        """The batch.

        Args:
            patches: Kind -> uint8 `(B, side, side, 3)` on the device, the needed kinds only.
            plan: The step's; index and corners are replaced, since the patches lie side by side now.
        """
        images = TrainingSet(
            hr=self._flat("hr", patches) or self._nothing(),
            lr=self._flat("lr", patches) or self._nothing(),
            scale=self._scale,
            centroid=self._flat("centroid", patches),
            centroid_lr=self._flat("centroid_lr", patches),
        )
        return images, plan._replace(index=self._index, top=self._corner, left=self._corner)

    def _flat(self, kind: str, patches: Mapping[str, Tensor]) -> FlatImages | None:
        if kind not in patches:
            return None
        return FlatImages(patches[kind].view(-1), self._offsets[kind], self._sides[kind], self._sides[kind])

    def _nothing(self) -> FlatImages:
        none = self._index[:0]
        return FlatImages(none.to(torch.uint8), none, none, none)
