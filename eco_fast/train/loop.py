"""The training loop: from the first step to the last checkpoint."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from eco_fast.config import Config
from eco_fast.data.flat import TrainingSet
from eco_fast.data.sampler import Sampler
from eco_fast.display import Display
from eco_fast.eco.objective import uses_alpha
from eco_fast.errors import Stopped, UserError
from eco_fast.evaluate.benchmark import Pair
from eco_fast.evaluate.run import evaluate
from eco_fast.models.weights import identity
from eco_fast.stop import stop_signal
from eco_fast.train.batches import BatchMaker, Phases
from eco_fast.train.graph import GraphedStep
from eco_fast.train.guard import CollapseGuard
from eco_fast.train.images import TrainingImages, patches_per_image
from eco_fast.train.lane import Lane, streams_of
from eco_fast.train.log import Curves
from eco_fast.train.machine import describe
from eco_fast.train.online import OnlineTeacher
from eco_fast.train.optim import learning_rate
from eco_fast.train.precision import AUTOCAST
from eco_fast.train.run_folder import Progress, RunFolder
from eco_fast.train.speed import Clock, memory_mb, peak_flops, training_flops
from eco_fast.train.step import StudentStep

_AGREE_EVERY = 10  # steps between two questions to the other processes whether one of them was told to stop


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


class Loop:
    """The steps of one call of `train`."""

    def __init__(self, config: Config, folder: RunFolder, inputs: Inputs, state: StudentStep, display: Display) -> None:
        self.config, self.folder, self.inputs, self.state, self.display = config, folder, inputs, state, display
        images, data, self.world = inputs.images, config.data, state.world
        sampler = Sampler(
            images.heights,
            images.widths,
            config.scale,
            data.patch,
            data.batch,
            config.run.seed,
            patches_per_image=patches_per_image(config),
            rank=self.world.rank,
            world_size=self.world.size,
        )
        self.phases = Phases(config)
        source = images.open(sampler.plan, self.phases.needs)
        online = None if inputs.teacher is None else self._online(inputs.teacher, images.resident)
        self.maker = BatchMaker(self.phases, sampler.plan, source, data.patch, online, state.budget)
        self.lane = Lane(self.maker, streams_of(config.run.device), overlap=config.run.lanes)
        self.update = GraphedStep(state) if config.run.graph else state
        self.collapse = CollapseGuard(config.run.steps)
        self.identity = identity(config.student.name, config.student.options, config.scale)
        self.flops = training_flops(state.student, data.patch) * (data.batch // self.world.size)
        self.curves = Curves(folder.path) if config.run.tensorboard and self.world.leads else None
        self.psnr_y: float | None = None
        self.best: float | None = None
        self.checkpoint = folder.checkpoints.latest()
        self.start(Progress(0, torch.zeros(2), None, {}))

    def start(self, progress: Progress) -> None:
        """Stand where `progress` does; the clock runs from here."""
        self.window, self.best = progress.window.to(self.config.run.device), progress.best
        self.clock = Clock(progress.step)
        self.state.student.train()

    def run(self, progress: Progress) -> Result:
        """All steps from `progress` on."""
        run, first = self.config.run, progress.step
        self.start(progress)
        stopped, done = False, first
        with stop_signal() as stop, self.display.training(run.steps, first) as show:
            for step in range(first, run.steps):
                line, done = self.advance(step), step + 1
                if line is not None or done % 10 == 0:
                    show(done, line)
                if self.world.size == 1 or done % _AGREE_EVERY == 0:
                    stopped = self.world.any(stop.asked) and done < run.steps
                self._validate_and_save(done, stopped)
                if stopped:
                    break
        return self._end(done, stopped, self.clock.rate(done - first))

    def advance(self, step: int) -> str | None:
        """One step, and its line of the log if one is due."""
        done, run = step + 1, self.config.run
        logged = done % run.log_every == 0 or done == run.steps
        loss, skip = self._step(step, logged)
        self.window += torch.stack((torch.where(skip.bool(), 0.0, loss), 1.0 - skip))
        if not logged:
            return None
        line = self._log(done, self.window)
        self.window = torch.zeros_like(self.window)
        return line

    def _validate_and_save(self, done: int, stopped: bool) -> None:
        run, last = self.config.run, done == self.config.run.steps
        validates = bool(self.inputs.valid) and (done % run.valid_every == 0 or last)
        saves = done % run.checkpoint_every == 0 or last or stopped
        if not validates and not saves:
            return
        streams_of(run.device).synchronize()  # what is under way is training, not validation
        with self.clock.paused():
            better = validates and self._validate(done)
            if saves or better:
                self._save(done, best=better)

    def _end(self, done: int, stopped: bool, rate: float) -> Result:
        self.lane.close()
        self.maker.close()
        if self.curves is not None:
            self.curves.close()
        self.world.any(False)  # the checkpoint is there when any process returns
        if self.maker.made:
            read = ", ".join(f"{kind} {count}" for kind, count in sorted(self.maker.made.items()))
            self.display.line(f"batches that read or ran: {read}")
        self.checkpoint = self.folder.checkpoints.latest()
        if stopped or self.checkpoint is None:
            raise Stopped(f"stopped after step {done}; checkpoint {self.checkpoint}; go on with --resume")
        best = self.folder.checkpoints.best()
        marked = f"; best by validation: {best}" if best not in (None, self.checkpoint) else ""
        made = f"{rate:.1f} steps/s" if self.maker.made else f"all {done} steps were done before"
        self.display.line(f"{made}; checkpoint: {self.checkpoint}{marked}")
        return Result(self.checkpoint, rate, self.psnr_y)

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
            compile_=self.config.run.compile,
        )

    def _step(self, step: int, measured: bool) -> tuple[Tensor, Tensor]:
        self.state.budget.open = measured
        batch = self.lane.take(step)
        if step > self.phases.last_of_teacher:  # its last batch was taken: what the lane did is ordered before this
            self.maker.free_teacher()
        if measured:
            self.collapse.look(step, self.state.student, batch.x)
        result = self.update(step, batch)
        self.lane.done(step)
        if step + 1 < self.config.run.steps:  # now, since it may wait for files: a GPU has its work already
            self.lane.begin(step + 1)
        return result

    def _log(self, done: int, window: Tensor) -> str:
        """Write one line of metrics; the only place where the host waits for the device."""
        run, optim = self.config.run, self.config.optim
        skipped = self.state.guard.check(self.config.guard.limit, done, self._kept())
        self.collapse.check(done, self._kept())
        total, accepted, norm = torch.cat((window, self.state.gradient_norm.view(1))).tolist()
        record: dict[str, Any] = {
            "kind": "train",
            "step": done,
            "loss": total / accepted if accepted else None,
            "lr": learning_rate(done - 1, run.steps, optim),
            "skipped": skipped,
            "gradient_norm": norm,
        }
        if uses_alpha(self.config.mode):
            record["alpha"] = self.phases.alpha(done - 1)
        steps_per_second = self.clock.lap(done)
        record["speed"] = speed = self._speed(steps_per_second)
        self._record(record)
        alpha = f"alpha {record['alpha']:.3f}  " if "alpha" in record else ""
        loss = f"{record['loss']:.4f}" if accepted else "none accepted"
        parts = "  ".join(f"{part} {share:.0%}" for part, share in speed["budget"].items())
        skips = f"  {skipped} skipped" if skipped else ""
        return f"loss {loss}  {alpha}lr {record['lr']:.2e}  {speed['patches_per_second']:.0f} patches/s{skips}  {parts}"

    def _speed(self, steps_per_second: float) -> dict[str, Any]:
        """Patches per second, the shares of a step, memory, and how much of the device's arithmetic is used."""
        run, step_ms = self.config.run, 1000 / steps_per_second
        parts = self.state.budget.read()
        parts["other"] = max(0.0, step_ms - sum(parts.values()))  # parts that overlap leave nothing
        speed = {
            "patches_per_second": steps_per_second * self.config.data.batch,
            "step_ms": step_ms,
            "budget": {name: round(ms / step_ms, 4) for name, ms in parts.items()},
            "batches": dict(self.maker.made),
            "memory_mb": memory_mb(run.device),
            "tflops": self.flops * steps_per_second / 1e12,
        }
        peak = peak_flops(torch.cuda.get_device_name(), run.precision) if run.device == "cuda" else None
        return speed if peak is None else {**speed, "utilisation": self.flops * steps_per_second / peak}

    def _record(self, record: dict[str, Any]) -> None:
        if self.world.leads:
            self.folder.log({**record, "time": time.time()})
        if self.curves is not None:
            self.curves.add(record)

    def _kept(self) -> str:
        return f"the last checkpoint is {self.checkpoint}" if self.checkpoint else "no checkpoint was written yet"

    def _validate(self, done: int) -> bool:
        """Validate, every process its share of the images; whether it was the best so far."""
        ema = self.state.ema
        network = ema.network if ema is not None else self.state.student
        mine = self.inputs.valid[self.world.rank :: self.world.size]
        scores = evaluate(network, mine, self.config.scale, ssim=False)
        total, count = self.world.sums([sum(scores.psnr), len(scores.psnr)])
        self.psnr_y = total / count
        self._record({"kind": "valid", "step": done, "psnr_y": self.psnr_y})
        self.display.line(f"step {done}: {self.psnr_y:.3f} dB PSNR-Y on {len(self.inputs.valid)} validation images")
        better = self.best is None or self.psnr_y > self.best
        self.best = self.psnr_y if better else self.best
        return better

    def _save(self, done: int, *, best: bool) -> None:
        if not all(p.isfinite().all() for p in self.state.parameters):
            raise UserError(f"weights are not finite at step {done}, so no checkpoint is written; lower optim.lr")
        if self.world.leads:
            progress = Progress(done, self.window, self.best, describe(self.config.run, self.world))
            self.checkpoint = self.folder.checkpoints.save(self.state, progress, self.identity, best=best)
