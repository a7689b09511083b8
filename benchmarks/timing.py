"""Timing of functions that do the same thing, in turns, so that a drift of the machine falls on all of them.

Every contestant runs in short blocks, one after the other, again and again; the first round warms up. What a sample is
differs with the device:

- CPU, `warm`: the wall time of one call, right after another one.
- CUDA, `cold`: the device's time between two events around one call, after a buffer larger than the L2 cache was
  written, as in `triton.testing.do_bench`; `warm`: the same after a call in between, so that what fits in L2 is there.

The turns are timed here, before the fixture `benchmark` is used. Each contestant's durations then go through that
fixture, whose clock moves by them alone (`recorded.py`), as an entry of its own. Tables, CSV and pytest-benchmark's
JSON so have their figures from the same calls.
"""

import math
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Mapping
from os import environ
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from eco_fast.commands.doctor import processor

Call = Callable[[], object]


class Plan(NamedTuple):
    """How long to measure: rounds of blocks, and seconds that a contestant's block should take."""

    rounds: int
    block_seconds: float


class Timing(NamedTuple):
    """20th, 50th and 80th percentile of a call, in microseconds."""

    p20: float
    p50: float
    p80: float


class Clock(Protocol):
    """How a device is timed."""

    caches: tuple[str, ...]
    """The states of the cache that it can tell apart."""

    def times(self, call: Call, count: int, cache: str) -> list[float]:
        """Microseconds of `count` calls."""
        ...

    def launches(self, call: Call) -> float | None:
        """Operations that one call puts on the device; None where there is no such thing."""
        ...


class CpuClock:
    """Times calls by the wall clock."""

    caches: tuple[str, ...] = ("warm",)

    def times(self, call: Call, count: int, cache: str) -> list[float]:
        call()  # the contestant before this one has filled the caches with its own
        result = []
        for _ in range(count):
            started = time.perf_counter_ns()
            call()
            result.append((time.perf_counter_ns() - started) / 1000)
        return result

    def launches(self, call: Call) -> float | None:
        return None


class CudaClock:
    """Times calls by device events; the host is so far ahead that the device never waits for it inside a sample."""

    caches: tuple[str, ...] = ("cold", "warm")

    def __init__(self, device: torch.device) -> None:
        # Twice the L2 cache, so that nothing of the call before survives; `do_bench` takes 256 MB.
        l2 = torch.cuda.get_device_properties(device).L2_cache_size
        self._flush = torch.empty(max(256 << 20, 2 * l2), dtype=torch.uint8, device=device)
        self._flush.zero_()  # the first one loads its kernel
        self._flush_us = statistics.median(self._between_events(self._flush.zero_, 10))

    def times(self, call: Call, count: int, cache: str) -> list[float]:
        prepare = self._head_start(call, calls=1 if cache == "cold" else 2)

        def before() -> None:
            prepare()
            if cache == "warm":
                call()

        return self._between_events(call, count, before)

    def launches(self, call: Call, calls: int = 4) -> float | None:
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        # The first recording starts the tracer up and may miss events; only the second is counted.
        for _ in range(2):
            torch.cuda.synchronize()
            with torch.profiler.profile(activities=activities) as profile:
                for _ in range(calls):
                    call()
                torch.cuda.synchronize()
        # On the device's side are kernels, copies and fills: each was a launch of its own. Annotations are spans.
        found = [e for e in profile.events() if e.device_type.name == "CUDA" and not e.is_user_annotation]
        return len(found) / calls if found else None  # the tracer has recorded nothing

    def _head_start(self, call: Call, calls: int) -> Call:
        """Flush the cache, for longer than the host needs to enqueue `calls` calls.

        Otherwise the device would reach the first event, then wait for the host, and the sample would be host time.
        """
        torch.cuda.synchronize()
        started = time.perf_counter_ns()
        call()
        host_us = (time.perf_counter_ns() - started) / 1000
        torch.cuda.synchronize()
        flushes = max(1, math.ceil(2 * calls * host_us / self._flush_us))

        def flush() -> None:
            for _ in range(flushes):
                self._flush.zero_()

        return flush

    @staticmethod
    def _between_events(call: Call, count: int, before: Call = lambda: None) -> list[float]:
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
        for start, end in events:
            before()
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()  # `elapsed_time` is defined once both events have completed
        return [1000 * start.elapsed_time(end) for start, end in events]


def clock_of(device: torch.device) -> Clock:
    return CudaClock(device) if device.type == "cuda" else CpuClock()


def measure(clock: Clock, contestants: Mapping[str, Call], plan: Plan) -> dict[tuple[str, str], list[float]]:
    """Microseconds of single calls, timed in turns; the keys are contestant and state of the cache."""
    samples: dict[tuple[str, str], list[float]] = {(name, cache): [] for name in contestants for cache in clock.caches}
    counts = {name: _count(clock, call, plan) for name, call in contestants.items()}
    order = list(contestants)
    for number in range(plan.rounds + 1):
        for name in order if number % 2 else reversed(order):  # no contestant always runs behind the same other
            for cache in clock.caches:
                times = clock.times(contestants[name], counts[name], cache)
                if number:  # the first round warms up
                    samples[name, cache] += times
    return samples


def copy_gb_per_s(clock: Clock, device: torch.device, plan: Plan, size: int) -> float:
    """Bytes read plus bytes written per second, in GB, of a copy of `size` bytes within the device's memory."""
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)  # some GPUs are faster on zeros
    target = torch.zeros_like(source)
    times = measure(clock, {"copy": lambda: target.copy_(source)}, plan)["copy", clock.caches[0]]
    return gb_per_s(2 * size, summary(times))


def gb_per_s(size: int, timing: Timing) -> float:
    """GB per second for `size` bytes in the median time."""
    return size / timing.p50 / 1000


def size_of(*tensors: Tensor) -> int:
    """Bytes of tensors, each counted once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def device_name(device: torch.device) -> str:
    """What the hardware calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor()


def why_not_compiled(device: torch.device) -> str | None:
    """Why `torch.compile` cannot compete, or None."""
    compiler = environ.get("CXX", "clang++" if platform.system() == "Darwin" else "g++")  # TorchInductor's own choice
    if device.type == "cpu" and shutil.which(compiler) is None:
        return f"there is no C++ compiler ({compiler})"
    return None


def _count(clock: Clock, call: Call, plan: Plan) -> int:
    """Calls that fill a block; makes the first calls, in which compilers and caches of weights do their work."""
    call()
    typical = statistics.median(clock.times(call, 3, clock.caches[0]))
    return max(2, min(200, round(plan.block_seconds * 1e6 / typical)))


def summary(times: list[float]) -> Timing:
    """Percentiles of microseconds."""
    deciles = statistics.quantiles(times, n=10, method="inclusive")
    return Timing(deciles[1], deciles[4], deciles[7])
