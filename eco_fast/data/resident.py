"""The source `resident`: the whole training set lies on the device, and kernels cut patches out of it."""

from dataclasses import replace

from eco_fast.data.batches import PlanOf
from eco_fast.data.sampler import Plan
from eco_fast.data.store import TrainingSet


class Resident:
    """Nothing is copied or waited for in a step."""

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
