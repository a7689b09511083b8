"""What the proof is made on, and what the simplest things cost there: ceilings to compare other figures with."""

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

from eco_fast.commands.doctor import diagnose
from eco_fast.proof.outcome import Evidence
from eco_fast.proof.stage import Stage
from eco_fast.train.machine import answer, commit_of

_ROOT = Path(__file__).parents[2]
_LAUNCHES = 1000
_BLOCK = 0.02  # seconds of calls between two looks at the clock: one look waits for the device


def measure(stage: Stage) -> Evidence:
    """Describe the machine; then a copy, a matrix product, and launches of a kernel that does nothing to speak of."""
    stage.say("machine", **describe())
    device = torch.device(stage.device)
    size = (16 if stage.small else 1024) << 20
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    stage.say(f"copy of {size >> 20} MiB", gb_per_s=round(2 * size / seconds_of(lambda: target.copy_(source)) / 1e9, 1))
    side = 512 if stage.small else 8192
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    stage.say(f"bf16 product of {side}^3", tflops=round(2 * side**3 / seconds_of(lambda: a @ b) / 1e12, 1))
    return Evidence(2 + _launches(stage, device), detail="nothing is compared here: what the machine can do at most")


def describe() -> dict[str, str]:
    """Device, driver, versions, date."""
    found = diagnose()
    versions = found["versions"]
    return {
        "hardware": found["device"]["GPU"] if torch.cuda.is_available() else found["device"]["CPU"],
        **found["device"],
        "driver": answer("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "CUDA of PyTorch": str(torch.version.cuda or "none"),
        **{name: version for name, version in versions.items() if name != "torch"},
        "torch": str(torch.__version__),
        "commit": commit_of(_ROOT),
        "system": platform.platform(),
        "CPU cores": str(os.cpu_count()),
        "date": time.strftime("%Y-%m-%d"),
        **found["uses"],
    }


def seconds_of(call: Callable[[], object], seconds: float = 0.5) -> float:
    """The median time of a call in blocks of many, the device's work included."""
    call()
    times: list[float] = []
    count, end = 1, time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        _wait()
        started = time.perf_counter()
        for _ in range(count):
            call()
        _wait()
        each = (time.perf_counter() - started) / count
        if count == 1 and each < _BLOCK:
            count = max(2, int(_BLOCK / max(each, 1e-7)))  # from now on
        else:
            times.append(each)
    return sorted(times)[len(times) // 2]


def _launches(stage: Stage, device: torch.device) -> int:
    """The cost of a launch: to the host, to the device, and as a node of a graph; returns how many were measured."""
    little = torch.zeros(64, device=device)

    def many() -> None:
        for _ in range(_LAUNCHES):
            little.add_(1)

    many()
    _wait()
    started = time.perf_counter()
    many()
    host = time.perf_counter() - started
    _wait()
    whole = time.perf_counter() - started
    scale = 1e6 / _LAUNCHES
    stage.say("launch of a tiny kernel", host_us=round(scale * host, 2), us=round(scale * whole, 2))
    if device.type != "cuda":
        return 1
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        many()
    stage.say("tiny kernel in a CUDA graph", us=round(scale * seconds_of(graph.replay), 3))
    return 2


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
