"""The log of a run: loss and speed of every `run.log_every` steps, to metrics.jsonl, TensorBoard and the terminal."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eco_fast.config import Config
from eco_fast.eco.objective import uses_alpha
from eco_fast.errors import UserError
from eco_fast.train.batches import Batches
from eco_fast.train.optim import learning_rate
from eco_fast.train.run_folder import RunFolder, RunState
from eco_fast.train.speed import Clock, memory_mb, peak_flops, training_flops
from eco_fast.train.update import Update


class Log:
    """Sums losses on the device; only `line` reads them."""

    def __init__(self, config: Config, folder: RunFolder, update: Update, batches: Batches) -> None:
        self.config, self.folder, self.batches, self.times = config, folder, batches, update.times
        self.student = update.learners["student"]
        self.leads = self.student.world.leads
        self.curves = Curves(folder.path) if config.run.tensorboard and self.leads else None
        self.flops = training_flops(self.student.network, config.data.patch) * (
            config.data.batch // self.student.world.size
        )
        self.window = torch.zeros(2, device=config.run.device)  # sum of the accepted losses, and their number
        self.clock = Clock(0)

    def start(self, progress: RunState) -> None:
        """Stand where `progress` does; the clock runs from here."""
        self.window, self.clock = progress.window.to(self.config.run.device), Clock(progress.step)

    def add(self, loss: Tensor, skip: Tensor) -> None:
        """Count one update, without a look at it."""
        self.window += torch.stack((torch.where(skip.bool(), 0.0, loss), 1.0 - skip))

    def line(self, done: int, skipped: int) -> str:
        """Write a record, return it as a line, begin the next window; waits for the device."""
        run, optim = self.config.run, self.config.optim
        total, accepted, norm = torch.cat((self.window, self.student.gradient_norm.view(1))).tolist()
        self.window = torch.zeros_like(self.window)
        record: dict[str, Any] = {
            "kind": "train",
            "step": done,
            "loss": total / accepted if accepted else None,
            "lr": learning_rate(done - 1, run.steps, optim),
            "skipped": skipped,
            "gradient_norm": norm,
        }
        if uses_alpha(self.config.mode):
            record["alpha"] = self.batches.phases.alpha(done - 1)
        record["speed"] = speed = self._speed(self.clock.lap(done))
        self.write(record)
        alpha = f"alpha {record['alpha']:.3f}  " if "alpha" in record else ""
        loss = f"{record['loss']:.4f}" if accepted else "none accepted"
        parts = "  ".join(f"{part} {share:.0%}" for part, share in speed["budget"].items())
        skips = f"  {skipped} skipped" if skipped else ""
        return f"loss {loss}  {alpha}lr {record['lr']:.2e}  {speed['patches_per_second']:.0f} patches/s{skips}  {parts}"

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
        """Patches per second, the shares of a step, memory, and how much of the device's arithmetic is used."""
        run, step_ms = self.config.run, 1000 / steps_per_second
        parts = self.times.read()
        parts["other"] = max(0.0, step_ms - sum(parts.values()))  # parts that overlap leave nothing
        speed = {
            "patches_per_second": steps_per_second * self.config.data.batch,
            "step_ms": step_ms,
            "budget": {name: round(ms / step_ms, 4) for name, ms in parts.items()},
            "batches": dict(self.batches.maker.made),
            "memory_mb": memory_mb(run.device),
            "tflops": self.flops * steps_per_second / 1e12,
        }
        peak = peak_flops(torch.cuda.get_device_name(), run.precision) if run.device == "cuda" else None
        return speed if peak is None else {**speed, "utilisation": self.flops * steps_per_second / peak}


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
            raise UserError('run.tensorboard needs TensorBoard: pip install "eco-fast[tensorboard]"') from error
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def add(self, record: Mapping[str, Any]) -> None:
        """Every number of a line of metrics, nested ones under the names above them."""
        self._add(record["kind"], record, record["step"])

    def _add(self, name: str, value: Any, step: int) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                self._add(f"{name}/{key}", inner, step)
        elif isinstance(value, int | float):
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
