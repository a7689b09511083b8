"""The batch of a step: which patches, with which weights, from which source, by which teacher."""

from collections import Counter

from eco_fast.data.source import Needs, PlanOf, Source
from eco_fast.train.budget import Budget
from eco_fast.train.online import OnlineTeacher
from eco_fast.train.phases import Phases
from eco_fast.train.step import Batch, make_batch


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
