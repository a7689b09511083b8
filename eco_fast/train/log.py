"""The log of a run: loss and speed of every `run.log_every` steps, to metrics.jsonl, TensorBoard and the terminal."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eco_fast.config import Config
from eco_fast.display import ASIDE, Part
from eco_fast.eco.objective import uses_alpha
from eco_fast.errors import UserError
from eco_fast.extras import install
from eco_fast.train.batches import Batches
from eco_fast.train.lane import streams_of
from eco_fast.train.optim import learning_rate
from eco_fast.train.run_folder import RunFolder, RunState
from eco_fast.train.speed import Budget, Clock, memory_mb, peak_flops, training_flops
from eco_fast.train.update import Update


class Reading(NamedTuple):
    """What the host learns of the device's work at a line of the log."""

    step: int
    in_a_row: int  # skipped updates up to now
    spread: float  # what the guard against a collapse has looked at; NaN if it has not
    parts: list[Part]  # for the terminal


class Noted(NamedTuple):
    """A line whose numbers are on their way from the device."""

    record: dict[str, Any]
    values: Tensor  # on the host once `event` has passed
    event: Any
    speed: dict[str, Any]


class Log:
    """Losses are summed on the device. A line is noted, and read when its numbers have come: no step waits for it."""

    def __init__(self, config: Config, folder: RunFolder, update: Update, batches: Batches) -> None:
        self.config, self.folder, self.batches, self.times = config, folder, batches, update.times
        self.student = update.learners["student"]
        self.leads = self.student.world.leads
        self.curves = Curves(folder.path) if config.run.tensorboard and self.leads else None
        self.flops = training_flops(self.student.network, config.data.patch) * (
            config.data.batch // self.student.world.size
        )
        self.clock, self.budget = Clock(0), Budget()
        self._streams = streams_of(config.run.device)
        self._noted: Noted | None = None

    def start(self, progress: RunState) -> None:
        """Stand where `progress` does; the clock runs from here."""
        self.student.state.window.copy_(progress.window)
        self.clock = Clock(progress.step)

    def note(self, done: int, spread: Tensor) -> None:
        """Begin a line, and the next window of losses. The line before was read, the measured step has ended.

        Args:
            done: Steps.
            spread: What the guard against a collapse has looked at, 0-dim on the device.
        """
        run, state = self.config.run, self.student.state
        record: dict[str, Any] = {
            "kind": "train",
            "step": done,
            "lr": learning_rate(done - 1, run.steps, self.config.optim),
        }
        if uses_alpha(self.config.mode):
            record["alpha"] = self.batches.phases.alpha(done - 1)
        numbers = (*state.window, state.norm, state.skipped, state.in_a_row, spread)
        values = torch.stack([number.double() for number in numbers])
        if values.is_cuda:
            values = torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)
        state.window.zero_()
        event = self._streams.Event()
        event.record(self._streams.current_stream())
        self._noted = Noted(record, values, event, self._speed(self.clock.lap(done)))

    def read(self, *, wait: bool) -> Reading | None:
        """Write the line that was noted if its numbers are there, with `wait` once they are; None if there is none."""
        if self._noted is None or not (wait or (self._noted.event.query() and self.times.came())):
            return None
        record, values, event, speed = self._noted
        self._noted = None
        event.synchronize()
        total, accepted, norm, skipped, in_a_row, spread = values.tolist()
        speed = {**speed, "budget": self.budget.add(*self.times.read())}
        loss = total / accepted if accepted else None
        record = {**record, "loss": loss, "skipped": int(skipped), "gradient_norm": norm, "speed": speed}
        self.write(record)
        return Reading(record["step"], int(in_a_row), spread, list(_parts(record)))

    def write(self, record: dict[str, Any]) -> None:
        """One record to every place it goes."""
        if self.leads:
            self.folder.log({**record, "time": time.time()})
        if self.curves is not None:
            self.curves.add(record)

    def close(self) -> None:
        """Write what is left."""
        if self.curves is not None:
            self.curves.close()

    def _speed(self, steps_per_second: float) -> dict[str, Any]:
        """Patches per second, memory, and how much of the device's arithmetic is used."""
        run = self.config.run
        speed = {
            "patches_per_second": steps_per_second * self.config.data.batch,
            "step_ms": 1000 / steps_per_second,
            "batches": dict(self.batches.maker.made),
            "memory_mb": memory_mb(run.device),
            "tflops": self.flops * steps_per_second / 1e12,
        }
        peak = peak_flops(torch.cuda.get_device_name(), run.precision) if run.device == "cuda" else None
        return speed if peak is None else {**speed, "utilisation": self.flops * steps_per_second / peak}


def _parts(record: Mapping[str, Any]) -> Iterator[Part]:
    """What a person is shown of a line, the loss first; where there is little room the speed goes before it."""
    loss = record["loss"]
    yield Part("none accepted" if loss is None else f"loss {loss:#.5g}")
    speed = record["speed"]["patches_per_second"]
    yield Part(f"{speed:.{0 if speed >= 10 else 2}f} patches/s", 1)
    if record["skipped"]:
        yield Part(f"{record['skipped']} skipped", 3)
    if "alpha" in record:
        yield Part(f"alpha {record['alpha']:.3f}", ASIDE)
    yield Part(f"lr {record['lr']:.2e}", ASIDE + 1)


class Curves:
    """The log in TensorBoard's files, an extra: event files next to `metrics.jsonl`."""

    def __init__(self, folder: Path) -> None:
        """Open the run's folder.

        Raises:
            UserError: TensorBoard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(f"run.tensorboard needs TensorBoard; {install('tensorboard')}") from error
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def add(self, record: Mapping[str, Any]) -> None:
        """Every number of a line of metrics, nested ones under the names above them, those of a set under its name."""
        self._add("/".join(record[key] for key in ("kind", "set") if key in record), record, record["step"])

    def _add(self, name: str, value: Any, step: int) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                self._add(f"{name}/{key}", inner, step)
        elif isinstance(value, int | float):
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
