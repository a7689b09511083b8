"""The training loop: take a batch, update, begin the next one; log, validate, save."""

from pathlib import Path
from typing import NamedTuple

from eco_fast.config import Config
from eco_fast.display import Display
from eco_fast.errors import Stopped, UserError
from eco_fast.evaluate.run import evaluate
from eco_fast.models.weights import identity
from eco_fast.stop import stop_signal
from eco_fast.train.batches import Batches
from eco_fast.train.guard import CollapseGuard, refuse_many_skips
from eco_fast.train.inputs import Inputs
from eco_fast.train.lane import streams_of
from eco_fast.train.log import Log
from eco_fast.train.machine import describe
from eco_fast.train.run_folder import RunFolder, RunState
from eco_fast.train.update import GraphedUpdate, Update

_EVERY = 10  # steps between two looks of the display, and of the processes at whether one was told to stop


class Result(NamedTuple):
    """What a run leaves."""

    checkpoint: Path  # the last one, where the first process runs
    steps_per_second: float  # of the steps of this call, validation and checkpoints aside
    psnr_y: float | None  # last validation


class Loop:
    """The steps of one call of `train`."""

    def __init__(self, config: Config, folder: RunFolder, inputs: Inputs, update: Update, display: Display) -> None:
        self.config, self.folder, self.valid, self.display = config, folder, inputs.valid, display
        self.update = GraphedUpdate(update, config.run.device, display.line) if config.run.graphed else update
        self.student = update.learners["student"]
        self.world = self.student.world
        self.batches = Batches(config, inputs, self.world, update.times, display.line)
        self.log = Log(config, folder, update, self.batches)
        self.collapse = CollapseGuard(config.run.steps)
        self.best: float | None = None
        self.psnr_y: float | None = None
        self.checkpoint: Path | None = None  # the newest; it lies where the first process runs
        for learner in update.learners.values():
            learner.network.train()

    def run(self, progress: RunState) -> Result:
        """All steps from `progress` on."""
        run, world, first = self.config.run, self.world, progress.step
        self.best = progress.best
        self.checkpoint = world.share(self.folder.checkpoints.latest())
        self.log.start(progress)
        done, stopped = first, False
        if run.compile != "off" and done < run.steps:
            self.display.line("compiling the network; the first steps take a while")
        with stop_signal() as stop, self.display.training(run.steps, first) as show:
            while done < run.steps and not stopped:
                line = self.advance(done)
                done += 1
                last = done == run.steps
                # Show, and ask all processes whether one was told to stop.
                if line is not None or done % _EVERY == 0:
                    show(done, line)
                if world.size == 1 or done % _EVERY == 0:
                    stopped = world.any(stop.asked) and not last
                # Validate and save, off the clock.
                validates = bool(self.valid) and (last or done % run.valid_every == 0)
                saves = last or stopped or done % run.checkpoint_every == 0
                if validates or saves:
                    if (line := self._read(wait=True)) is not None:
                        show(done, line)
                    streams_of(run.device).synchronize()  # what is under way is training, not validation
                    with self.log.clock.paused():
                        better = validates and self._validate(done)
                        if saves or better:
                            self._save(done, best=better)
        return self._end(done, stopped, self.log.clock.rate(done - first))

    def advance(self, step: int) -> str | None:
        """One step; a line of the log if one is due. On a GPU its numbers come later: no step waits for the device."""
        done, run = step + 1, self.config.run
        logged, line = done % run.log_every == 0 or done == run.steps, None
        if logged:
            line = self._read(wait=True)  # the one before: the host is never further ahead than that
            self.update.times.measure(True)
        # The batch, made while the last step ran.
        batch = self.batches.take(step)
        spread = self.collapse.look(step, self.student.network, batch.x) if logged else None
        # Forward, loss, backward, optimiser, average.
        self.update.schedule(step)
        self.update(batch)
        # The next batch is begun now, since it may wait for files: a GPU has its work already.
        self.batches.done(step)
        if spread is not None:
            self.log.note(done, self.world.mean(spread.clone()))  # what inference has made takes no sum
        # Several processes read at the same steps, and the same: a guard that ends the run ends it on all.
        on_cpu = run.device == "cpu"
        return line or (self._read(wait=on_cpu) if on_cpu or self.world.size == 1 else None)

    def _read(self, *, wait: bool) -> str | None:
        """The line of the log whose numbers have come, after the guards have seen them."""
        reading = self.log.read(wait=wait)
        if reading is None:
            return None
        refuse_many_skips(reading.in_a_row, reading.step, self.config.guard, self._kept())
        self.collapse.check(reading.spread, reading.step, self._kept())
        return reading.line

    def close(self) -> None:
        """Stop what makes batches; write what is left of the log."""
        self.batches.close()
        self.log.close()

    def _end(self, done: int, stopped: bool, rate: float) -> Result:
        self.close()
        self.world.meet()  # the checkpoint is there when any process returns
        made = self.batches.maker.made
        if made:
            read = ", ".join(f"{kind} {count}" for kind, count in sorted(made.items()))
            self.display.line(f"batches that read or ran: {read}")
        if stopped or self.checkpoint is None:
            raise Stopped(f"stopped after step {done}; checkpoint {self.checkpoint}; go on with --resume")
        best = self.folder.checkpoints.best()
        marked = f"; best by validation: {best}" if best not in (None, self.checkpoint) else ""
        speed = f"{rate:.1f} steps/s" if made else f"all {done} steps were done before"
        self.display.line(f"{speed}; checkpoint: {self.checkpoint}{marked}")
        return Result(self.checkpoint, rate, self.psnr_y)

    def _kept(self) -> str:
        return f"the last checkpoint is {self.checkpoint}" if self.checkpoint else "no checkpoint was written yet"

    def _validate(self, done: int) -> bool:
        """Validate, every process its share of the images; whether it was the best so far."""
        world = self.world
        world.copy(self.student.network.buffers())  # statistics of a normalisation are each process's own
        mine, scale = self.valid[world.rank :: world.size], self.config.scale
        precision = "bf16" if self.config.run.valid_precision == "bf16" else "fp32"  # older runs never settled theirs
        scores = evaluate(self.student.averaged, mine, scale, ssim=False, precision=precision)
        total, count = world.sums([sum(scores.psnr), len(scores.psnr)])
        self.psnr_y = total / count
        self.log.write({"kind": "valid", "step": done, "psnr_y": self.psnr_y})
        self.display.line(f"step {done}: {self.psnr_y:.3f} dB PSNR-Y on {len(self.valid)} validation images")
        better = self.best is None or self.psnr_y > self.best
        self.best = self.psnr_y if better else self.best
        return better

    def _save(self, done: int, *, best: bool) -> None:
        config, learners = self.config, self.update.learners
        if not all(learner.parameters.weights.isfinite().all() for learner in learners.values()):
            raise UserError(f"weights are not finite at step {done}, so no checkpoint is written; lower optim.lr")
        with self.world.agree():
            if self.world.leads:
                progress = RunState(done, self.student.state.window, self.best, describe(config.run, self.world))
                header = identity(
                    config.student.name,
                    config.student.options,
                    config.scale,
                    mode=config.mode,
                    teacher=config.teacher.file,
                )
                self.folder.checkpoints.save(learners, progress, header, best=best)
        self.checkpoint = self.folder.checkpoints.at(done)
