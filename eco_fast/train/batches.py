"""The batch of a step: alpha and what follows from it, which patches, from which source, by which teacher."""

from bisect import bisect_left
from collections import Counter
from functools import cached_property

import torch
from torch import Tensor

from eco_fast.config import Config
from eco_fast.data.sampler import Sampler
from eco_fast.data.source import Needs, PlanOf, Source
from eco_fast.eco.alpha import make_schedule
from eco_fast.eco.objective import Blend, blend
from eco_fast.errors import UserError
from eco_fast.train.images import patches_per_image
from eco_fast.train.inputs import Inputs
from eco_fast.train.lane import Lane, streams_of
from eco_fast.train.online import OnlineTeacher
from eco_fast.train.precision import AUTOCAST
from eco_fast.train.speed import Budget
from eco_fast.train.step import Batch, StudentStep, make_batch


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


class BatchMaker:
    """Makes batches. `made` counts them by what they read, and those that ran the teacher."""

    def __init__(
        self,
        phases: Phases,
        plan: PlanOf,
        source: Source,
        patch: int,
        online: OnlineTeacher | None = None,
        budget: Budget | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            phases: Of the run.
            plan: Of this process's share of every batch.
            source: Where patches come from.
            patch: LR pixels.
            online: The teacher, where centroids are not stored.
            budget: Where the time of reading and of the teacher is counted.
        """
        self.made: Counter[str] = Counter()
        self._phases, self._plan, self._source, self._patch, self._online = phases, plan, source, patch, online
        self._budget = budget or Budget("cpu")

    def __call__(self, step: int) -> Batch:
        """The batch of a step, by work on the current stream."""
        needs = self._phases.needs(step)
        self.made.update(kind for kind, needed in zip(Needs._fields, needs, strict=True) if needed)
        if self._online is not None and self._phases.reads_teacher(step):
            self.made["teacher"] += 1
            with self._budget.part("teacher"):
                plan = self._plan(step).to(self._online.device)
                return self._online.batch(plan, self._phases.weights(step, plan.uniform))
        with self._budget.part("data"):
            images, plan = self._source.fetch(step)
            plan = plan.to(images.device)
            return make_batch(images, plan, self._patch, self._phases.weights(step, plan.uniform))

    def free_teacher(self) -> None:
        """Let go of the teacher, or of what is stored of it. Nothing may ask for it after that."""
        self._source.free_centroids()
        if self._online is not None:
            self._online.free()
            self._online = None

    def close(self) -> None:
        """Stop the source."""
        self._source.close()


class Batches:
    """Sampler, source or online teacher, lane. `take` a batch, then say `done` to have the next one begun."""

    def __init__(self, config: Config, inputs: Inputs, state: StudentStep) -> None:
        images, data, world = inputs.images, config.data, state.world
        sampler = Sampler(
            images.heights,
            images.widths,
            config.scale,
            data.patch,
            data.batch,
            config.run.seed,
            patches_per_image=patches_per_image(config),
            rank=world.rank,
            world_size=world.size,
        )
        self.phases = Phases(config)
        source = images.open(sampler.plan, self.phases.needs)
        online = _online_teacher(config, inputs)
        self.maker = BatchMaker(self.phases, sampler.plan, source, data.patch, online, state.budget)
        self.lane = Lane(self.maker, streams_of(config.run.device), overlap=config.run.lanes)
        self._last = config.run.steps - 1

    def take(self, step: int) -> Batch:
        """What a step reads, ordered before whatever the caller does next."""
        batch = self.lane.take(step)
        if step > self.phases.last_of_teacher:  # its last batch was taken: what the lane did is ordered before this
            self.maker.free_teacher()
        return batch

    def done(self, step: int) -> None:
        """The step has read its batch; begin the next one."""
        self.lane.done(step)
        if step < self._last:
            self.lane.begin(step + 1)

    def close(self) -> None:
        """Let everything go."""
        self.lane.close()
        self.maker.close()


def _online_teacher(config: Config, inputs: Inputs) -> OnlineTeacher | None:
    """The teacher of a run that makes its centroids while training; None where they are stored or not needed."""
    if inputs.teacher is None:
        return None
    if inputs.images.resident is None:
        raise UserError("teacher.mode=online needs the images in memory; use --set data.source=resident")
    settings = config.teacher
    return OnlineTeacher(
        inputs.teacher,
        inputs.images.resident,
        config.data.patch,
        context=settings.context,
        precision=AUTOCAST.get(settings.precision),
        rounded=settings.rounding == "8bit",
        compile_=config.run.compile,
    )
