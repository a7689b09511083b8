"""How timing in turns and pytest-benchmark live together.

A ratio can be trusted where contestants run in turns, a few calls of each at a time, since a drift of the machine then
falls on all; pytest-benchmark times one function after the other. So the turns are timed here, and pytest-benchmark
gets what they measured: its clock is one that moves by the recorded durations alone, and every contestant is an entry
of its own. What it prints, compares and writes as JSON are those durations, with the figures of the row as extra info.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

_now = 0.0


def clock() -> float:
    """The timer of every benchmark: `@pytest.mark.benchmark(group=..., timer=clock)`."""
    return _now


class Recorder:
    """Replays durations to the fixture of pytest-benchmark, an entry per call."""

    def __init__(self, benchmark: Any) -> None:
        self._unused, self._test = benchmark, benchmark.name

    def __call__(self, case: str, seconds: Sequence[float], about: dict[str, object]) -> None:
        """Add an entry.

        Args:
            case: Its name.
            seconds: What was measured, one duration per round.
            about: Its extra info.

        Raises:
            RuntimeError: The test is not marked with `clock` as its timer.
        """
        entry, self._unused = self._unused, copy.copy(self._unused)  # a fixture can be used once
        entry.name = f"{self._test}[{case}]"
        entry.fullname = f"{entry.fullname.partition('[')[0]}[{case}]"
        entry.extra_info = about
        entry.pedantic(_advance, (iter(seconds),), setup=_reset, rounds=len(seconds))
        if entry.enabled and entry.stats.stats.total != sum(seconds):
            raise RuntimeError(f"{self._test} lacks the mark pytest.mark.benchmark(timer=recorded.clock)")


def _reset() -> None:
    global _now
    _now = 0.0


def _advance(durations: Iterator[float]) -> None:
    global _now
    _now += next(durations)
