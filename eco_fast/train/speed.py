"""How fast a run is, where the time of a step goes, and how much of the device's arithmetic it uses."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from eco_fast.train.machine import unsearched
from eco_fast.units import counted
from eco_kernels import tail

PARTS = ("data", "teacher", "student", "optimiser")
LOG = "log"
"""What only a step of the log does: it is taken out of the step's time."""

_WHOLE = "step"

_PEAK_TFLOPS = {  # dense tensor-core peaks of NVIDIA's data sheets, fp32 accumulation: (bf16 and fp16, tf32)
    "A100": (312.0, 156.0),
    "H100 PCIe": (756.0, 378.0),
    "H100": (989.0, 495.0),
    "H200": (989.0, 495.0),
    "B200": (2250.0, 1125.0),
    "L40S": (362.0, 183.0),
    "RTX 3090": (71.0, 35.6),
    "RTX 4090": (165.2, 82.6),
    "RTX 5090": (209.5, 104.8),
}
_FORWARD_AND_BACKWARD = 3  # the backward pass computes two products for each one of the forward pass


class StepTimes:
    """A step and its parts in seconds. One step of every line of the log is measured, the others cost nothing.

    On a GPU a part is what lies between two events on its own stream, so parts that run side by side add up to more
    than the step; `data` is the host's time, which fetching takes. Nothing waits before `read`.
    """

    def __init__(self, device_type: str) -> None:
        self._cuda = device_type == "cuda"
        self._spans: list[tuple[str, Any, Any]] = []
        self._began: Any = None  # where a step that is being measured began
        self.part: Callable[[str], AbstractContextManager[object]] = nullcontext
        """Counts what is inside as a part: one of `PARTS`, or `LOG`."""

    def begin(self) -> None:
        """Measure the step that begins here."""
        self._began, self.part = self._now(self._cuda), self._measured

    def end(self) -> None:
        """The step that is measured ends here."""
        self._spans.append((_WHOLE, self._began, self._now(self._cuda)))
        self.part = nullcontext

    @contextmanager
    def _measured(self, name: str) -> Iterator[None]:
        if self._cuda and torch.cuda.is_current_stream_capturing():  # its events could not be read
            yield
            return
        on_device = self._cuda and name != "data"
        first = self._now(on_device)
        yield
        self._spans.append((name, first, self._now(on_device)))

    def came(self) -> bool:
        """Whether `read` would wait for nothing."""
        return all(isinstance(last, float) or last.query() for *_, last in self._spans)

    def read(self) -> tuple[float, dict[str, float]]:
        """The milliseconds of the step that was measured, and of its parts, with `other` for the rest.

        Waits for the device. Parts that ran side by side add up to more than the step, and leave no rest.
        """
        parts = dict.fromkeys((_WHOLE, LOG, *PARTS), 0.0)
        for name, first, last in self._spans:
            if isinstance(first, float):
                parts[name] += 1000 * (last - first)
            else:
                last.synchronize()
                parts[name] += first.elapsed_time(last)
        self._spans.clear()
        whole = parts.pop(_WHOLE) - parts.pop(LOG)
        rest = max(0.0, whole - sum(parts.values()))
        return whole, {**{name: ms for name, ms in parts.items() if ms > 0}, "other": rest}

    @staticmethod
    def _now(on_device: bool) -> Any:
        if not on_device:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Budget:
    """Where the time of a run went, from the steps that were measured."""

    def __init__(self) -> None:
        self._steps, self._whole = 0, 0.0
        self._parts: dict[str, float] = {}

    def add(self, whole: float, parts: Mapping[str, float]) -> dict[str, float]:
        """Take a step as `StepTimes.read` gives it; returns the shares of its parts in it."""
        self._steps += 1
        self._whole += whole
        for name, ms in parts.items():
            self._parts[name] = self._parts.get(name, 0.0) + ms
        return {name: round(ms / whole, 4) for name, ms in parts.items()}

    def line(self) -> str:
        """One line with the shares of all steps, empty if none was measured.

        Where parts overlap it says so, else they sum to 100 %.
        """
        if not self._steps:
            return ""
        shares = ", ".join(f"{name} {ms / self._whole:.1%}" for name, ms in self._parts.items())
        overlap = sum(self._parts.values()) > 1.001 * self._whole
        beside = "; parts overlap: batches are made beside the student" if overlap else ""
        return f"where the time went: {shares} (of {counted(self._steps, 'measured step')}{beside})"


def training_flops(network: nn.Module, patch: int) -> int:
    """FLOPs of forward and backward for one LR patch, a product and a sum counted as two; runs it forward once."""
    device = next(network.parameters()).device
    gpus = [device] if device.type == "cuda" else []
    counts = FlopCounterMode(display=False, custom_mapping={torch.ops.eco_kernels.linear_tail: tail.flops})
    with torch.no_grad(), torch.random.fork_rng(gpus), unsearched(), counts as counter:
        network(torch.zeros((1, 3, patch, patch), device=device))
    return _FORWARD_AND_BACKWARD * counter.get_total_flops()


def peak_flops(device_name: str, precision: str) -> float | None:
    """FLOP/s that a GPU can reach at a precision; None where that is not known, and for fp32 without tensor cores."""
    found = [name for name in _PEAK_TFLOPS if name in device_name]
    if not found or precision == "fp32":
        return None
    half, tf32 = _PEAK_TFLOPS[max(found, key=len)]
    return 1e12 * (tf32 if precision == "tf32" else half)


def memory_mb(device_type: str) -> int | None:
    """Peak memory so far in MB: what PyTorch took on a GPU, on the CPU that of the process, if the system tells it."""
    if device_type == "cuda":
        return torch.cuda.max_memory_allocated() >> 20
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM:")), None)


class Clock:
    """Time spent on steps: pauses for validation and checkpoints are not counted."""

    def __init__(self, first_step: int) -> None:
        self._started = time.perf_counter()
        self.pauses = 0.0  # seconds
        self._last_time, self._last_step = 0.0, first_step

    def seconds(self) -> float:
        """Seconds since the start, without the pauses."""
        return time.perf_counter() - self._started - self.pauses

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
        self.pauses += time.perf_counter() - started
