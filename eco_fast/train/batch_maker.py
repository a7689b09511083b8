"""The batch of a step: which patches, with which weights, from which source, by which teacher."""

from collections import Counter

import torch
from torch import Tensor

from eco_fast.config import Config
from eco_fast.data.batches import Needs, Source
from eco_fast.data.sampler import Sampler
from eco_fast.eco.alpha import make_schedule
from eco_fast.eco.objective import Blend, blend
from eco_fast.train.online import OnlineTeacher
from eco_fast.train.step import Batch, make_batch


class BatchMaker:
    """Makes batches. What a step reads is a pure function of its number.

    Three phases follow each other where alpha rises from 0 to 1: HR is not read while alpha is 0, and nothing of the
    teacher once alpha is 1. `made` counts the batches by what they read, and those that ran the teacher.
    """

    def __init__(self, config: Config, sampler: Sampler, source: Source, online: OnlineTeacher | None = None) -> None:
        """Nothing is read yet.

        Args:
            config: Of the run.
            sampler: Of this process's share of every batch.
            source: Where patches come from; where a teacher runs online, the same images as its own.
            online: The teacher, where centroids are not stored.
        """
        self.made: Counter[str] = Counter()
        self._config, self._sampler, self._source, self._online = config, sampler, source, online
        alpha = config.alpha
        self._schedule = make_schedule(alpha.schedule, shift=alpha.shift, end=alpha.end, value=alpha.value)

    def alpha(self, step: int) -> float:
        """The weight of the real pair at a step."""
        return self._schedule(step / self._config.run.steps)

    def needs(self, step: int) -> Needs:
        """What a step reads."""
        weights = self._weights(step, torch.zeros(1))
        return Needs(weights.needs_lr, weights.needs_centroid_lr, weights.needs_hr, weights.needs_centroid)

    def last_of_teacher(self) -> int:
        """The last step that reads anything of the teacher, -1 if none does."""
        steps = range(self._config.run.steps - 1, -1, -1)
        return next((step for step in steps if self._reads_teacher(step)), -1)

    def __call__(self, step: int) -> Batch:
        """The batch of a step, by work on the current stream."""
        self.made.update(kind for kind, needed in zip(Needs._fields, self.needs(step), strict=True) if needed)
        if self._online is not None and self._reads_teacher(step):
            self.made["teacher"] += 1
            plan = self._sampler.plan(step)
            return self._online.batch(plan, self._weights(step, plan.uniform))
        images, plan = self._source.fetch(step)
        return make_batch(images, plan, self._config.data.patch, self._weights(step, plan.uniform))

    def free_teacher(self) -> None:
        """Let go of the teacher's memory."""
        if self._online is not None:
            self._online.free()
            self._online = None

    def _weights(self, step: int, uniform: Tensor) -> Blend:
        return blend(self._config.mode, self.alpha(step), uniform)

    def _reads_teacher(self, step: int) -> bool:
        needs = self.needs(step)
        return needs.centroid or needs.centroid_lr
