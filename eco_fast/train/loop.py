"""The training loop: take a batch, update, begin the next one; log, validate, save."""

import math
import time
from pathlib import Path
from typing import NamedTuple

from eco_fast.config import Config
from eco_fast.display import Display, Part
from eco_fast.errors import Stopped, UserError
from eco_fast.models.weights import identity
from eco_fast.stop import stop_signal
from eco_fast.train.batches import Batches
from eco_fast.train.guard import CollapseGuard, refuse_many_skips
from eco_fast.train.inputs import Inputs
from eco_fast.train.lane import streams_of
from eco_fast.train.log import Log
from eco_fast.train.machine import describe
from eco_fast.train.run_folder import RunFolder, RunState
from eco_fast.train.speed import LOG
from eco_fast.train.update import GraphedUpdate, Update
from eco_fast.train.valid import validate
from eco_fast.units import counted, duration

_EVERY = 10  # steps between two looks of the display, and of the processes at whether one was told to stop


class Result(NamedTuple):
    """What a run leaves."""

    checkpoint: Path  # the last one, where the first process runs
    steps_per_second: float  # of the steps of this call, validation and checkpoints aside
    psnr_y: float | None  # last validation, of the first set


class Best(NamedTuple):
    """The highest figure of the first validation set, and when it was reached, as far as that is known."""

    psnr_y: float
    step: int | None

    def __str__(self) -> str:
        return f"best {self.psnr_y:.3f}" + (f" at {self.step}" if self.step else "")


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
        self.best: Best | None = None
        self.start: float | None = None  # of the first set, before the first step
        self.psnr_y: float | None = None
        self.checkpoint: Path | None = None  # the newest; it lies where the first process runs
        for learner in update.learners.values():
            learner.network.train()

    def run(self, progress: RunState) -> Result:
        """All steps from `progress` on."""
        run, world, first = self.config.run, self.world, progress.step
        if progress.best is not None:
            kept = self.folder.checkpoints.best()
            self.best = Best(progress.best, None if kept is None else int(kept.name.rpartition("-")[2]))
        self.checkpoint = world.share(self.folder.checkpoints.latest())
        done, stopped = first, False
        if first == 0 and self.valid:
            self._validate(0)
        self.log.start(progress)
        if run.compile != "off" and done < run.steps:
            self.display.line("compiling the network; the first steps take a while")
        with stop_signal() as stop, self.display.training(run.steps, first) as show:
            while done < run.steps and not stopped:
                parts = self.advance(done)
                done += 1
                last = done == run.steps
                # Show, and ask all processes whether one was told to stop.
                if parts is not None or done % _EVERY == 0:
                    show(done, parts)
                if world.size == 1 or done % _EVERY == 0:
                    stopped = world.any(stop.asked) and not last
                # Validate and save, off the clock.
                validates = bool(self.valid) and (last or done % run.valid_every == 0)
                saves = last or stopped or done % run.checkpoint_every == 0
                if validates or saves:
                    if (parts := self._read(wait=True)) is not None:
                        show(done, parts)
                    streams_of(run.device).synchronize()  # what is under way is training, not validation
                    with self.log.clock.paused():
                        better = validates and self._validate(done)
                        if saves or better:
                            self._save(done, best=better)
        rate = self._say_speed(done - first)
        return self._end(done, stopped, rate)

    def advance(self, step: int) -> list[Part] | None:
        """One step; what is shown of a line of the log if one is due.

        On a GPU its numbers come later: no step waits for the device.
        """
        done, run = step + 1, self.config.run
        logged, parts, spread = done % run.log_every == 0 or done == run.steps, None, None
        if logged:
            parts = self._read(wait=True)  # the one before: the host is never further ahead than that
            self.update.times.begin()
        # The batch, made while the last step ran.
        batch = self.batches.take(step)
        if logged:
            with self.update.times.part(LOG):
                spread = self.collapse.look(step, self.student.network, batch.x)
        # Forward, loss, backward, optimiser, average.
        self.update.schedule(step)
        self.update(batch)
        # The next batch is begun now, since it may wait for files: a GPU has its work already.
        self.batches.done(step)
        if spread is not None:
            self.update.times.end()
            self.log.note(done, self.world.mean(spread.clone()))  # what inference has made takes no sum
        # Several processes read at the same steps, and the same: a guard that ends the run ends it on all.
        on_cpu = run.device == "cpu"
        return parts or (self._read(wait=on_cpu) if on_cpu or self.world.size == 1 else None)

    def _read(self, *, wait: bool) -> list[Part] | None:
        """What the line of the log says whose numbers have come, after the guards have seen them."""
        reading = self.log.read(wait=wait)
        if reading is None:
            return None
        refuse_many_skips(reading.in_a_row, reading.step, self.config.guard, self._kept())
        self.collapse.check(reading.spread, reading.step, self._kept())
        return reading.parts

    def close(self) -> None:
        """Stop what makes batches; write what is left of the log."""
        self.batches.close()
        self.log.close()

    def _say_speed(self, steps: int) -> float:
        """Say how long the steps of this call took and what their time was spent on; steps per second."""
        clock, budget = self.log.clock, self.log.budget.line()
        rate, seconds = clock.rate(steps), clock.seconds()
        if not steps:
            self.display.line(f"all {self.config.run.steps} steps were done before; --more N trains for longer")
            return rate
        paused = f"; validation and checkpoints: {duration(clock.pauses)}" if clock.pauses else ""
        self.display.line(f"{counted(steps, 'step')} in {duration(seconds)}, {rate:.3g} steps/s{paused}")
        if budget:
            self.display.line(budget)
        return rate

    def _end(self, done: int, stopped: bool, rate: float) -> Result:
        self.close()
        self.world.meet()  # the checkpoint is there when any process returns
        if stopped or self.checkpoint is None:
            raise Stopped(f"stopped after step {done}; checkpoint {self.checkpoint}; go on with --resume")
        if self.start is not None and self.best is not None and self.best.psnr_y < self.start:
            self.display.line(f"WARNING: no validation reached the {self.start:.3f} dB of step 0; lower optim.lr")
        best = self.folder.checkpoints.best()
        marked = f"; best by validation: {best}" if best not in (None, self.checkpoint) else ""
        self.display.line(f"checkpoint: {self.checkpoint}{marked}")
        return Result(self.checkpoint, rate, self.psnr_y)

    def _kept(self) -> str:
        return f"the last checkpoint is {self.checkpoint}" if self.checkpoint else "no checkpoint was written yet"

    def _validate(self, done: int) -> bool:
        """Validate on every set and say how it went; whether the first one was never better after a step."""
        self.world.copy(self.student.network.buffers())  # statistics of a normalisation are each process's own
        precision = "bf16" if self.config.run.valid_precision == "bf16" else "fp32"  # older runs never settled theirs
        better = False
        for name, pairs, bicubic in self.valid:
            began = time.monotonic()
            psnr = validate(self.student.averaged, pairs, self.config.scale, self.world, precision)
            finite = bicubic if math.isfinite(bicubic) else None  # flat images are reproduced exactly
            self.log.write({"kind": "valid", "step": done, "set": name, "psnr_y": psnr, "bicubic": finite})
            compared = [f"bicubic {bicubic:.3f}"]
            if name == self.valid[0].name:
                better = self._judge(psnr, done)
                compared += [] if self.best is None else ["the best so far" if better else str(self.best)]
            took = duration(time.monotonic() - began)
            self.display.line(f"step {done}: {name} {psnr:.3f} dB ({', '.join(compared)}), {took}")
        return better

    def _judge(self, psnr: float, done: int) -> bool:
        """Whether it is the best so far. Step 0 is not judged: it has no checkpoint that could be the best."""
        self.psnr_y = psnr
        if done == 0:
            self.start = psnr
            return False
        if self.best is not None and psnr <= self.best.psnr_y:
            return False
        self.best = Best(psnr, done)
        return True

    def _save(self, done: int, *, best: bool) -> None:
        config, learners = self.config, self.update.learners
        if not all(learner.parameters.weights.isfinite().all() for learner in learners.values()):
            raise UserError(f"weights are not finite at step {done}, so no checkpoint is written; lower optim.lr")
        highest = None if self.best is None else self.best.psnr_y
        with self.world.agree():
            if self.world.leads:
                progress = RunState(done, self.student.state.window, highest, describe(config.run, self.world))
                header = identity(
                    config.student.name,
                    config.student.options,
                    config.scale,
                    mode=config.mode,
                    teacher=config.teacher.file,
                )
                self.folder.checkpoints.save(learners, progress, header, best=best)
        self.checkpoint = self.folder.checkpoints.at(done)
