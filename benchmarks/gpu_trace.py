"""What a profiler saw on the GPU: launches, how busy it was, which kernels took the time, which streams overlapped."""

import gzip
import json
import re
from bisect import bisect
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch

from eco_fast.train.lane import streams_of

COUNTED = "counted"  # what the steps that count are called in a recording
_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")  # categories of a recording
_BY_HOST = ("cuda_runtime", "cuda_driver")


class Kernel(NamedTuple):
    """One kernel, copy or fill on the device, in microseconds."""

    name: str
    stream: int
    start: float
    end: float


class Trace(NamedTuple):
    """What happened between two waits for the device."""

    kernels: list[Kernel]
    """In the order of their starts."""
    launches: int
    """Calls of the host that put work on the device: a kernel, a graph of many, a copy or a fill."""
    graphs: int
    """Launches of graphs."""
    lost: int
    """Launches of whose work the profiler saw nothing."""


def record(run: Callable[[int], None], steps: int, file: Path, device: str) -> Trace:
    """Run steps under PyTorch's profiler; `file` (.json.gz) keeps the whole recording.

    Twice as many go before those that count: a GPU that was idle runs slower at first, and CUPTI 13.0 loses kernels at
    the start of a recording (https://github.com/pytorch/pytorch/issues/192021).
    """
    wait, activities = streams_of(device).synchronize, [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if device == "cuda" else []
    with torch.profiler.profile(activities=activities) as profile:
        run(2 * steps)
        wait()
        with torch.profiler.record_function(COUNTED):
            run(steps)
            wait()
    profile.export_chrome_trace(str(file))
    with gzip.open(file, "rt", encoding="utf-8") as opened:
        return read_trace(json.load(opened))


def read_trace(trace: dict[str, list[dict]]) -> Trace:
    """What a trace in Chrome's format holds of the steps that count."""
    events = [event for event in trace["traceEvents"] if "cat" in event]
    (counted,) = (e for e in events if e["cat"] == "user_annotation" and e["name"] == COUNTED)
    begin, end = counted["ts"], counted["ts"] + counted["dur"]

    def of(categories: tuple[str, ...]) -> list[dict]:
        return [e for e in events if e["cat"] in categories and begin <= e["ts"] <= end]

    kernels = [Kernel(e["name"], int(e["args"].get("stream", 0)), e["ts"], e["ts"] + e["dur"]) for e in of(_ON_DEVICE)]
    launches = [e for e in of(_BY_HOST) if re.search("Launch(?!HostFunc)|Memcpy|Memset", e["name"])]
    by_id = {e["args"]["correlation"]: "GraphLaunch" in e["name"] for e in launches}  # its kernels have its number
    seen = {e["args"].get("correlation") for e in events if e["cat"] in _ON_DEVICE}
    kernels.sort(key=lambda kernel: kernel.start)
    return Trace(kernels, len(by_id), sum(by_id.values()), len(by_id.keys() - seen))


def busy_us(kernels: Sequence[Kernel]) -> float:
    """Time in which at least one kernel ran; the kernels are ordered by their starts."""
    return sum(end - start for start, end in _busy(kernels))


def _busy(kernels: Sequence[Kernel]) -> list[tuple[float, float]]:
    """Starts and ends of the times in which at least one kernel ran; even those of one stream may overlap."""
    times: list[tuple[float, float]] = []
    for kernel in kernels:
        if times and kernel.start <= times[-1][1]:
            times[-1] = times[-1][0], max(times[-1][1], kernel.end)
        else:
            times.append((kernel.start, kernel.end))
    return times


def longest(kernels: Sequence[Kernel], count: int) -> list[tuple[str, int, float]]:
    """Name, launches and microseconds of the kernels that took most time, all launches of a name together."""
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
    busy = _busy(by_stream.get(main, []))
    starts = [start for start, _ in busy]
    sums = list(accumulate((end - start for start, end in busy), initial=0.0))

    def until(time: float) -> float:
        """How long the busiest stream had been busy."""
        number = bisect(starts, time)
        return sums[number] - (max(0.0, busy[number - 1][1] - time) if number else 0.0)

    others = [kernel for kernel in kernels if kernel.stream != main]
    return sum(k.end - k.start for k in others), sum(until(k.end) - until(k.start) for k in others)
