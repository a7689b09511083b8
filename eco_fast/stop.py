"""Ctrl-C and SIGTERM as a request to stop."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """Whether the user has asked for an end."""

    asked = False


@contextmanager
def stop_signal() -> Iterator[Stop]:
    """Turn the first Ctrl-C or SIGTERM into a request: the caller ends after its current step, and saves first."""
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
