"""The host's clock and signals around a training loop."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Clock:
    """Time spent on steps: pauses for validation and checkpoints are not counted."""

    def __init__(self, first_step: int) -> None:
        self._started = time.perf_counter()
        self._paused = 0.0
        self._last_time, self._last_step = 0.0, first_step

    def seconds(self) -> float:
        """Seconds since the start, without the pauses."""
        return time.perf_counter() - self._started - self._paused

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
        self._paused += time.perf_counter() - started


class Stop:
    """Whether the user has asked for an end."""

    asked = False


@contextmanager
def stop_signal() -> Iterator[Stop]:
    """Turn Ctrl-C and SIGTERM into a wish that the loop honours after the current step, by saving first."""
    stop = Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        stop.asked = True
        signal.signal(number, old[signal.Signals(number)])  # a second one stops at once

    try:
        old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are not ours
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
