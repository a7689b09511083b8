"""The batches of a run: alpha and what follows from it, patches from their source, the teacher, one step ahead."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from eco_fast.config import Config
from eco_fast.data.files import Files, ImageFiles
from eco_fast.data.flat import TrainingSet
from eco_fast.data.mapped import ArrayFiles, Mapped
from eco_fast.data.rows import Row, rows_on
from eco_fast.data.sampler import Sampler
from eco_fast.data.source import Patches, ReadsOf, Resident, Source
from eco_fast.eco.alpha import make_schedule
from eco_fast.eco.objective import Blend, blends, reads
from eco_fast.train.graph import Graphs
from eco_fast.train.inputs import Images, Inputs
from eco_fast.train.lane import Lane, slot_of, streams_of
from eco_fast.train.online import OnlineTeacher, online_teacher
from eco_fast.train.speed import StepTimes
from eco_fast.train.world import World


class Batch(NamedTuple):
    """What one update reads: the blended input, and the two images of the target, None where its weight is 0."""

    x: Tensor  # (B, 3, P, P) fp32 in [0, 1], channels_last
    hr: Tensor | None  # (B, 3, sP, sP) uint8, channels_last
    centroid: Tensor | None  # like hr, or fp32
    alpha: Tensor  # weight of hr in the target, 0-dim or (B,)

    def parts(self, count: int) -> Iterator["Batch"]:
        """The batch in `count` equal pieces."""
        if count == 1:
            yield self
            return
        pieces = [[None] * count if t is None or t.ndim == 0 else t.chunk(count) for t in self]
        for x, hr, centroid, alpha in zip(*pieces, strict=True):
            yield Batch(x, hr, centroid, self.alpha if alpha is None else alpha)


def make_batch(patches: Patches, weights: Blend, reads: tuple[str, ...], teacher: OnlineTeacher | None = None) -> Batch:
    """A batch of patches, by work on the current stream.

    Args:
        patches: Of the kinds that it reads.
        weights: Of the real pair.
        reads: The images that it reads; one that it does not read has no weight.
        teacher: Makes centroids of the patches' windows; None where they are stored, or not read.
    """
    if teacher is None:
        x = patches.input(weights.input, reads)
        centroid = patches.target("centroid") if "centroid" in reads else None
    else:
        x, made = teacher.pair(patches, weights.input)
        centroid = made if "centroid" in reads else None
    return Batch(x, patches.target("hr") if "hr" in reads else None, centroid, weights.target)


_REMEMBERED = 64  # steps: several ask about one


class Phases:
    """What every step of a run reads; pure functions of the step.

    Where alpha rises from 0 to 1 three phases follow each other: HR is not read while alpha is 0, and nothing of the
    teacher once alpha is 1.
    """

    def __init__(self, config: Config) -> None:
        alpha = config.alpha
        self._mode, self._steps = config.mode, config.run.steps
        self._schedule = make_schedule(alpha.schedule, shift=alpha.shift, end=alpha.end, value=alpha.value)
        self.reads = lru_cache(maxsize=_REMEMBERED)(self._reads)
        """Step -> the images that it reads."""

    def alpha(self, step: int) -> float:
        """The weight of the real pair."""
        return self._schedule(step / self._steps)

    def weights(self, sampler: Sampler, device: torch.device | str) -> Row:
        """The weights of the real pair in every batch, on a device: see `blends`."""

        def rows(number: int) -> Tensor:
            steps = range(number * sampler.block, (number + 1) * sampler.block)
            return blends(self._mode, [self.alpha(step) for step in steps], sampler.uniforms(number))

        return rows_on(device, rows, sampler.block)

    def _reads(self, step: int) -> tuple[str, ...]:
        return reads(self._mode, self.alpha(step))

    def reads_teacher(self, step: int) -> bool:
        """Whether a step reads anything that the teacher makes."""
        return any(kind.startswith("centroid") for kind in self.reads(step))

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
        source: Source,
        weights: Row,
        teacher: OnlineTeacher | None = None,
        times: StepTimes | None = None,
        graphs: Graphs | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            phases: Of the run.
            source: Where patches come from, of the kinds that `fetched` names.
            weights: Of the real pair, on the device; see `Phases.weights`.
            teacher: The online one, where centroids are not stored.
            times: Where the time of reading and of the teacher is counted.
            graphs: Hold the work on the device.
        """
        self.made: Counter[str] = Counter()
        self._phases, self._source, self._weights, self._teacher = phases, source, weights, teacher
        self._times, self._graphs = times or StepTimes("cpu"), graphs

    def __call__(self, step: int) -> Batch:
        """The batch of a step, by work on the current stream."""
        with self._times.part("data"):
            data, cut = self._source.fetch(step)
        reads, weights = self._phases.reads(step), self._weights(step)
        teacher = self._teacher if self._phases.reads_teacher(step) else None
        self.made.update(reads)

        def work(data: Tensor, weights: Tensor) -> Batch:
            return make_batch(cut(data), Blend(*weights.unbind()), reads, teacher)

        if teacher is None:
            return self._do(step, reads, work, data, weights)
        self.made["teacher"] += 1
        with self._times.part("teacher"):
            return self._do(step, reads, work, data, weights)

    def _do(
        self, step: int, reads: tuple[str, ...], work: Callable[[Tensor, Tensor], Batch], data: Tensor, weights: Tensor
    ) -> Batch:
        if self._graphs is None:
            return work(data.to(weights.device, non_blocking=True), weights)
        return self._graphs(slot_of(step), reads, work, data, weights)

    def free_teacher(self) -> None:
        """Let go of the teacher, or of what is stored of it. Nothing may ask for it after that."""
        self._source.free_centroids()
        self._teacher = None

    def close(self) -> None:
        """Stop the source."""
        self._source.close()


class Batches:
    """Sampler, source, teacher, lane. `take` a batch, then say `done` to have the next one begun."""

    def __init__(
        self, config: Config, inputs: Inputs, world: World, times: StepTimes, say: Callable[[str], None] = print
    ) -> None:
        """Nothing is read yet.

        Args:
            config: Resolved.
            inputs: Of the run.
            world: Its processes.
            times: Where the time of reading and of the teacher is counted.
            say: Told why batches are not made by a CUDA graph, if they cannot be.
        """
        images, data = inputs.images, config.data
        teacher = None if inputs.teacher is None else online_teacher(config, inputs.teacher, images)
        context = 0 if teacher is None else config.teacher.context
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
            context=context,
        )
        self.phases = phases = Phases(config)
        online = teacher is not None  # the source holds neither the teacher nor, in a circle, these batches

        def fetched(step: int) -> tuple[str, ...]:
            """An online teacher makes centroids, and the LR of the patch lies in its window."""
            kinds = phases.reads(step)
            if not (online and phases.reads_teacher(step)):
                return kinds
            return ("window", "hr") if "hr" in kinds else ("window",)

        source = open_source(config, images, sampler, fetched, context)
        weights = phases.weights(sampler, config.run.device)
        graphs = Graphs("the making of a batch", config.run.device, say) if config.run.graphed else None
        self.maker = BatchMaker(phases, source, weights, teacher, times, graphs)
        self._has_teacher = True
        self.lane = Lane(self.maker, streams_of(config.run.device), overlap=config.run.lanes)
        self._last = config.run.steps - 1

    def take(self, step: int) -> Batch:
        """What a step reads, ordered before whatever the caller does next."""
        batch = self.lane.take(step)
        if self._has_teacher and step > self.phases.last_of_teacher:
            self.maker.free_teacher()  # its last batch was taken: what the lane did is ordered before this
            self._has_teacher = False
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


def open_source(config: Config, images: Images, sampler: Sampler, reads: ReadsOf, context: int) -> Source:
    """The source of a run's patches.

    Args:
        config: Resolved.
        images: The indices of the plans refer to these.
        sampler: Makes the plans.
        reads: A pure function of the step.
        context: LR pixels around a patch in a window.

    Raises:
        UserError: DALI is needed and not installed.
    """
    steps, patch, device = config.run.steps, config.data.patch, config.run.device
    match images:
        case TrainingSet():
            return Resident(images, sampler.on(device), reads, patch, context)
        case ArrayFiles():
            return Mapped(images, sampler.plan, reads, steps, patch, context, device)
        case ImageFiles():
            return Files(images, sampler.plan, reads, steps, patch, patches_per_image(config), context, device)


def patches_per_image(config: Config) -> int:
    """`data.patches_per_image`, where 0 stands for what suits the source."""
    return config.data.patches_per_image or (16 if config.data.source == "files" else 1)
