"""A contest: contestants timed in turns, their figures put into rows and, with every call, into pytest-benchmark."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar

import torch
from recorded import Recorder
from rows import Row, version_of
from timing import (
    Call,
    Plan,
    Timing,
    clock_of,
    copy_gb_per_s,
    device_name,
    gb_per_s,
    measure,
    summary,
    why_not_compiled,
)

from eco_fast.measured import marked

Result = TypeVar("Result")

# Many short blocks, not few long ones: what else the machine does then falls on all contestants alike.
_ON_GPU = Plan(rounds=8, block_seconds=0.02)
_USUAL, _QUICK = Plan(rounds=20, block_seconds=0.02), Plan(rounds=1, block_seconds=0.0)


class Track:
    """A device with its clock, and how fast it copies."""

    def __init__(self, device: torch.device, quick: bool) -> None:
        self.device = device
        self.clock = clock_of(device)
        self.plan = _QUICK if quick else _ON_GPU if device.type == "cuda" else _USUAL
        # Several times the largest caches: 512 MiB on a GPU, 128 MiB on a CPU.
        size = 1 << (20 if quick else 29 if device.type == "cuda" else 27)
        self.copy_gb_per_s = copy_gb_per_s(self.clock, device, self.plan, size)


# Once per run: what the percentages are of is the same for all.
_track = cache(Track)


class Contest:
    """Lets contestants compete and keeps what comes out.

    Args:
        benchmark: The fixture of pytest-benchmark; its group is the operation.
        rows, notes: Lists of the run, to which rows and remarks are added.
        quick: One short round, no compilation.
    """

    def __init__(self, benchmark: Any, rows: list[Row], notes: list[str], quick: bool) -> None:
        self._benchmark, self._rows, self._notes, self._quick = benchmark, rows, notes, quick
        self._record = Recorder(benchmark)

    def __call__(self, case: str, bytes_moved: int, device: torch.device, contestants: Mapping[str, Call]) -> None:
        """Time the contestants.

        Args:
            case: Which problem of the operation.
            bytes_moved: Each input once, each output once.
            device: Where the tensors lie.
            contestants: By name; one is called `product`.
        """
        track = _track(device, self._quick)
        samples = measure(track.clock, contestants, track.plan)
        timings = {key: summary(times) for key, times in samples.items()}
        launches = {name: track.clock.launches(call) for name, call in contestants.items()}
        for (name, state), times in samples.items():
            row = _row(self._benchmark.group, case, name, state, track, timings, bytes_moved, launches[name])
            self._rows.append(row)
            floor = {"floor_us": bytes_moved / track.copy_gb_per_s / 1000}  # at the bandwidth of a copy
            self._record(f"{case}, {name}, {state}", [us / 1e6 for us in times], row._asdict() | floor)

    def compiled(self, call: Callable[[], Result], device: torch.device) -> dict[str, Callable[[], Result]]:
        """`call` through `torch.compile` as the contestant `compiled`, or nothing and a note that says why.

        Tensors that `call` closes over are inputs of the graph, as arguments would be.
        """
        reason = "this is a quick run" if self._quick else why_not_compiled(device)
        if reason is not None:
            self._notes.append(f"torch.compile is left out: {reason}")
            return {}
        torch.compiler.reset()  # what other cases compiled need not be asked whether it fits
        return {"compiled": torch.compile(call, fullgraph=True, dynamic=False)}


def _row(
    operation: str,
    case: str,
    contestant: str,
    state: str,
    track: Track,
    timings: dict[tuple[str, str], Timing],
    bytes_moved: int,
    launches: float | None,
) -> Row:
    timing, product = timings[contestant, state], timings["product", state]
    speed = gb_per_s(bytes_moved, timing)
    return Row(
        operation=operation,
        case=case,
        contestant=contestant,
        cache=state,
        device=marked(device_name(track.device), quick=track.plan is _QUICK),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        triton=version_of("triton"),
        p20_us=timing.p20,
        p50_us=timing.p50,
        p80_us=timing.p80,
        bytes=bytes_moved,
        gb_per_s=speed,
        percent_of_copy=100 * speed / track.copy_gb_per_s,
        launches=launches,
        ratio=timing.p50 / product.p50,
    )
