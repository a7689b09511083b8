"""What a profiler saw on the GPU: launches, how busy it was, which kernels took the time, which streams overlapped."""

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch


class Kernel(NamedTuple):
    """One kernel, copy or fill on the device, in microseconds."""

    name: str
    stream: int
    start: float
    end: float


def kernels_of(call: Callable[[], None], file: Path) -> list[Kernel]:
    """Run something under PyTorch's profiler; what it put on the device. `file` (.json.gz) keeps the whole trace."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    profile.export_chrome_trace(str(file))
    with gzip.open(file, "rt", encoding="utf-8") as opened:
        return read_trace(json.load(opened))


def read_trace(trace: dict[str, list[dict]]) -> list[Kernel]:
    """The kernels, copies and fills of a trace in Chrome's format, in the order of their starts."""
    found = [
        Kernel(event["name"], int(event["args"].get("stream", 0)), event["ts"], event["ts"] + event["dur"])
        for event in trace["traceEvents"]
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")
    ]
    return sorted(found, key=lambda kernel: kernel.start)


def busy_us(kernels: Sequence[Kernel]) -> float:
    """Time in which at least one of them ran; they are ordered by their starts."""
    total, last = 0.0, float("-inf")
    for kernel in kernels:
        total += max(0.0, kernel.end - max(kernel.start, last))
        last = max(last, kernel.end)
    return total


def longest(kernels: Sequence[Kernel], count: int) -> list[tuple[str, int, float]]:
    """Name, launches and microseconds of those that took most time, all launches of a name together."""
    totals: dict[str, tuple[int, float]] = {}
    for kernel in kernels:
        launches, us = totals.get(kernel.name, (0, 0.0))
        totals[kernel.name] = launches + 1, us + kernel.end - kernel.start
    return [(name, *total) for name, total in sorted(totals.items(), key=lambda item: -item[1][1])[:count]]


def beside(kernels: Sequence[Kernel]) -> tuple[float, float]:
    """Microseconds of kernels that are not on the busiest stream, and how much of that another one ran beside."""
    by_stream: dict[int, list[Kernel]] = {}
    for kernel in kernels:
        by_stream.setdefault(kernel.stream, []).append(kernel)
    main = max(by_stream, key=lambda stream: sum(k.end - k.start for k in by_stream[stream]), default=0)
    mine, total, both = by_stream.get(main, []), 0.0, 0.0
    for other in (kernel for kernel in kernels if kernel.stream != main):
        total += other.end - other.start
        both += sum(max(0.0, min(other.end, each.end) - max(other.start, each.start)) for each in mine)
    return total, both
