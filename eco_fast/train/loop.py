"""The training loop: `train(config)` from images to the last checkpoint."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from eco_fast.config import Config, differing_keys
from eco_fast.data.notes import Notes
from eco_fast.data.sampler import Sampler
from eco_fast.data.store import TrainingSet
from eco_fast.eco.objective import needs_teacher, uses_alpha
from eco_fast.eco.teacher import refuse_shared_storage
from eco_fast.errors import Stopped, UserError
from eco_fast.evaluate.benchmark import Pair, load_benchmark
from eco_fast.evaluate.run import evaluate
from eco_fast.models import build
from eco_fast.models.weights import identity, load_into
from eco_fast.train.batch_maker import BatchMaker
from eco_fast.train.centroids import load_teacher
from eco_fast.train.checkpoint import Progress
from eco_fast.train.display import Display
from eco_fast.train.environment import configure, describe, resolve
from eco_fast.train.lane import Lane, streams_of
from eco_fast.train.online import OnlineTeacher
from eco_fast.train.optim import learning_rate
from eco_fast.train.phases import Phases
from eco_fast.train.precision import AUTOCAST
from eco_fast.train.run_folder import RunFolder
from eco_fast.train.step import StudentStep
from eco_fast.train.training_images import TrainingImages, load_images, patches_per_image


class Result(NamedTuple):
    """What a run leaves."""

    checkpoint: Path  # the last one
    steps_per_second: float  # of the steps of this call, validation and checkpoints aside
    psnr_y: float | None  # last validation


class Inputs(NamedTuple):
    """Everything a run reads, loaded and checked before the first step."""

    images: TrainingImages
    valid: list[Pair]
    student: nn.Module
    teacher: nn.Module | None  # one that runs online; a cached one has done its work


def train(
    config: Config,
    *,
    resume: bool = False,
    force: bool = False,
    teacher: nn.Module | None = None,
    display: Display | None = None,
) -> Result:
    """Train a student.

    Args:
        config: The configuration; `auto` values are resolved here and recorded in the run's folder.
        resume: Go on from the newest checkpoint of `config.run.out`, to the same bits as a run that was not stopped.
        force: Replace a run that is in `config.run.out`.
        teacher: A frozen network to use in place of `config.teacher.file`.
        display: Where progress is shown.

    Raises:
        UserError: Bad input, a loss that is not finite, a full disk. Nothing that was written before is lost.
    """
    display = display or Display()
    folder = RunFolder(config.run.out, config.run.keep_last)
    folder.claim(resume=resume, force=force)
    previous = folder.previous_config() if resume else None
    config = resolve(config, previous)
    if previous is not None and (differences := differing_keys(config, previous)):
        raise UserError(
            f"{folder.path} was started with other settings: {', '.join(differences)}; "
            f"resume it with its own: eco-fast train {folder.config_file} --resume"
        )
    configure(config.run)
    inputs = load_inputs(config, teacher, display)
    state = StudentStep(inputs.student, config)
    if resume:
        progress = _resume(folder, state, config, display)
    else:
        folder.start(config)
        progress = Progress(0, torch.zeros(2, device=config.run.device), describe(config.run))
    return _Loop(config, folder, inputs, state, display).run(progress)


def load_inputs(config: Config, teacher: nn.Module | None, display: Display) -> Inputs:
    """Load the student, the teacher, the images; make the centroids.

    The networks come first: a wrong teacher is found before images are decoded.
    """
    data, device = config.data, config.run.device
    torch.manual_seed(config.run.seed)
    student = build(config.student.name, config.scale, **config.student.options)
    if config.student.init is not None:
        load_into(student, config.student.init)
    student = student.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stub
    if needs_teacher(config.mode):
        teacher = teacher or load_teacher(config.teacher, config.scale)
        refuse_shared_storage(teacher, student)
    valid_notes = Notes()
    valid = load_benchmark(data.valid, config.scale, data.valid_lr, valid_notes) if data.valid else []
    online = teacher if needs_teacher(config.mode) and config.teacher.mode == "online" else None
    stored = teacher if needs_teacher(config.mode) and online is None else None
    for network in filter(None, (online, stored)):
        network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = load_images(config, stored, display)
    for line in valid_notes.lines():
        display.line(f"validation: {line}")
    display.line(f"{len(images.heights)} training images, {len(valid)} validation images")
    return Inputs(images, valid, student, online)


def _resume(folder: RunFolder, state: StudentStep, config: Config, display: Display) -> Progress:
    latest = folder.checkpoints.latest()
    if latest is None:
        raise UserError(f"{folder.path} has no checkpoint to resume from; leave --resume out to start a run there")
    progress = folder.checkpoints.load(latest, state)
    folder.drop_metrics_after(progress.step)
    display.line(f"resuming {latest}")
    for key, value in describe(config.run).items():
        if progress.environment.get(key) != value:
            display.line(f"note: {key} was {progress.environment.get(key)}, is {value}: the bits may differ")
    return progress


class _Loop:
    """The steps of one call of `train`."""

    def __init__(self, config: Config, folder: RunFolder, inputs: Inputs, state: StudentStep, display: Display) -> None:
        self.config, self.folder, self.inputs, self.state, self.display = config, folder, inputs, state, display
        images, data = inputs.images, config.data
        sampler = Sampler(
            images.heights,
            images.widths,
            config.scale,
            data.patch,
            data.batch,
            config.run.seed,
            patches_per_image=patches_per_image(config),
            rank=state.world.rank,
            world_size=state.world.size,
        )
        self.phases = Phases(config)
        source = images.open(sampler.plan, self.phases.needs)
        online = None if inputs.teacher is None else self._online(inputs.teacher, images.resident)
        self.maker = BatchMaker(self.phases, sampler.plan, source, data.patch, online)
        self.lane = Lane(self.maker, streams_of(config.run.device), overlap=config.run.lanes)
        self.identity = identity(config.student.name, config.student.options, config.scale)
        self.psnr_y: float | None = None
        self.checkpoint = folder.checkpoints.latest()

    def run(self, progress: Progress) -> Result:
        """All steps from `progress` on."""
        run, first = self.config.run, progress.step
        window = progress.window.to(run.device)
        self.state.student.train()
        clock = _Clock(first)
        stopped, done = False, first
        with _stop_signal() as stop, self.display.training(run.steps, first) as show:
            for step in range(first, run.steps):
                loss, skip = self._step(step)
                window += torch.stack((torch.where(skip.bool(), 0.0, loss), 1.0 - skip))
                done = step + 1
                last = done == run.steps
                stopped = stop.asked and not last
                if done % run.log_every == 0 or last:
                    show(done, self._log(done, window, clock))
                    window = torch.zeros_like(window)
                elif done % 10 == 0:
                    show(done, None)
                with clock.paused():
                    if self.inputs.valid and (done % run.valid_every == 0 or last):
                        self._validate(done)
                    if done % run.checkpoint_every == 0 or last or stopped:
                        self._save(done, window)
                if stopped:
                    break
        self.lane.close()
        self.maker.close()
        if stopped or self.checkpoint is None:
            raise Stopped(f"stopped after step {done}; checkpoint {self.checkpoint}; go on with --resume")
        return Result(self.checkpoint, clock.rate(run.steps - first), self.psnr_y)

    def _online(self, teacher: nn.Module, images: TrainingSet | None) -> OnlineTeacher:
        if images is None:
            raise UserError("teacher.mode=online needs the images in memory; use --set data.source=resident")
        settings = self.config.teacher
        return OnlineTeacher(
            teacher,
            images,
            self.config.data.patch,
            context=settings.context,
            precision=AUTOCAST.get(settings.precision),
            rounded=settings.rounding == "8bit",
        )

    def _step(self, step: int) -> tuple[Tensor, Tensor]:
        batch = self.lane.take(step)
        if step > self.phases.last_of_teacher:  # its last batch was taken: what the lane did is ordered before this
            self.maker.free_teacher()
        if step + 1 < self.config.run.steps:
            self.lane.begin(step + 1)
        result = self.state(step, batch)
        self.lane.done(step)
        return result

    def _log(self, done: int, window: Tensor, clock: "_Clock") -> str:
        """Write one line of metrics; the only place where the host waits for the device."""
        run = self.config.run
        skipped = self.state.guard.check(self.config.guard.limit, done, self._kept())
        total, accepted = window.tolist()
        record: dict[str, Any] = {
            "kind": "train",
            "step": done,
            "loss": total / accepted if accepted else None,
            "lr": learning_rate(done - 1, run.steps, self.config.optim),
            "skipped": skipped,
        }
        if uses_alpha(self.config.mode):
            record["alpha"] = self.phases.alpha(done - 1)
        rate = clock.lap(done) * self.config.data.batch
        self.folder.log({**record, "patches_per_second": rate, "time": time.time()})
        alpha = f"alpha {record['alpha']:.3f}  " if "alpha" in record else ""
        loss = f"{record['loss']:.4f}" if accepted else "none accepted"
        return f"loss {loss}  {alpha}lr {record['lr']:.2e}  {rate:.0f} patches/s" + f"  {skipped} skipped" * bool(
            skipped
        )

    def _kept(self) -> str:
        return f"the last checkpoint is {self.checkpoint}" if self.checkpoint else "no checkpoint was written yet"

    def _validate(self, done: int) -> None:
        ema = self.state.ema
        network = ema.network if ema is not None else self.state.student
        scores = evaluate(network, self.inputs.valid, self.config.scale, ssim=False)
        self.psnr_y = scores.psnr_y
        self.folder.log({"kind": "valid", "step": done, "psnr_y": scores.psnr_y, "time": time.time()})
        self.display.line(f"step {done}: {scores.psnr_y:.3f} dB PSNR-Y on {len(self.inputs.valid)} validation images")

    def _save(self, done: int, window: Tensor) -> None:
        if not all(p.isfinite().all() for p in self.state.parameters):
            raise UserError(f"weights are not finite at step {done}, so no checkpoint is written; lower optim.lr")
        progress = Progress(done, window.cpu(), describe(self.config.run))
        self.checkpoint = self.folder.checkpoints.save(self.state, progress, self.identity)


class _Clock:
    """Time spent on steps: pauses for validation and checkpoints are not counted."""

    def __init__(self, first_step: int) -> None:
        self._started = time.perf_counter()
        self._paused = 0.0
        self._last_time, self._last_step = 0.0, first_step

    def seconds(self) -> float:
        """Seconds since the start, without the pauses."""
        return time.perf_counter() - self._started - self._paused

    def lap(self, step: int) -> float:
        """Steps per second since the last lap."""
        now = self.seconds()
        rate = (step - self._last_step) / (now - self._last_time)
        self._last_time, self._last_step = now, step
        return rate

    def rate(self, steps: int) -> float:
        """Steps per second over the whole call."""
        return steps / self.seconds() if steps else 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time inside out of the count."""
        started = time.perf_counter()
        yield
        self._paused += time.perf_counter() - started


class _Stop:
    asked = False


@contextmanager
def _stop_signal() -> Iterator[_Stop]:
    """Turn Ctrl-C and SIGTERM into a wish that the loop honours after the current step, by saving first."""
    stop = _Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        stop.asked = True
        signal.signal(number, old[signal.Signals(number)])  # a second one stops at once

    try:
        old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are not ours
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
