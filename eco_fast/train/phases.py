"""What every step of a run reads: alpha over the steps, and the three phases that follow from it."""

from bisect import bisect_left
from functools import cached_property

import torch
from torch import Tensor

from eco_fast.config import Config
from eco_fast.data.source import Needs
from eco_fast.eco.alpha import make_schedule
from eco_fast.eco.objective import Blend, blend


class Phases:
    """Pure functions of the step.

    Where alpha rises from 0 to 1 three phases follow each other: HR is not read while alpha is 0, and nothing of the
    teacher once alpha is 1.
    """

    def __init__(self, config: Config) -> None:
        alpha = config.alpha
        self._mode, self._steps = config.mode, config.run.steps
        self._schedule = make_schedule(alpha.schedule, shift=alpha.shift, end=alpha.end, value=alpha.value)

    def alpha(self, step: int) -> float:
        """The weight of the real pair."""
        return self._schedule(step / self._steps)

    def weights(self, step: int, uniform: Tensor) -> Blend:
        """The weights of a batch; `uniform` `(B,)` in [0, 1) are its samples' own numbers."""
        return blend(self._mode, self.alpha(step), uniform)

    def needs(self, step: int) -> Needs:
        """The kinds of patches that a step reads."""
        weights = self.weights(step, torch.zeros(1))
        return Needs(weights.needs_lr, weights.needs_centroid_lr, weights.needs_hr, weights.needs_centroid)

    def reads_teacher(self, step: int) -> bool:
        """Whether a step reads anything that the teacher makes."""
        needs = self.needs(step)
        return needs.centroid or needs.centroid_lr

    @cached_property
    def last_of_teacher(self) -> int:
        """The last step that reads anything that the teacher makes, -1 if none does.

        Alpha never falls, so in no mode does a step that reads the teacher follow one that does not: some 20 steps are
        looked at, whatever their number.
        """
        return bisect_left(range(self._steps), True, key=lambda step: not self.reads_teacher(step)) - 1
