"""The teacher's lane: batches are made one step ahead of the student, on a stream of their own.

A lane is a stream and the events that order it. `streams` is the module that makes them: `torch.cuda`, or `torch.cpu`,
whose streams do nothing, so that the same code runs everywhere.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, Generic, TypeVar

import torch

Made = TypeVar("Made")

_SLOTS = 2  # one that the student reads, one that is being made


def slot_of(step: int) -> int:
    """Where the batch of a step lies; in order, they take turns."""
    return step % _SLOTS


def streams_of(device: torch.device | str) -> ModuleType:
    """The module with `Stream`, `Event`, `stream` and `current_stream` for a device."""
    return torch.cuda if torch.device(device).type == "cuda" else torch.cpu


class Lane(Generic[Made]):
    """Makes what step t + 1 reads while step t computes.

    What is made lives in a slot until the student has finished with it: the lane waits for that before it lets the
    memory go, which the allocator then hands out again to the lane alone. So nothing needs `record_stream`.
    """

    def __init__(self, make: Callable[[int], Made], streams: Any, *, overlap: bool = True) -> None:
        """Nothing is made yet.

        Args:
            make: Step -> its tensors, by work on the current stream.
            streams: See `streams_of`.
            overlap: False makes everything when it is asked for, on the stream that asks.
        """
        self._make, self._streams, self._overlap = make, streams, overlap
        self._stream = streams.Stream()
        self._ready = [streams.Event() for _ in range(_SLOTS)]
        self._free = [streams.Event() for _ in range(_SLOTS)]
        self._made: list[Made | None] = [None] * _SLOTS
        self._ahead: int | None = None  # step that the lane has made and has not been taken

    def take(self, step: int) -> Made:
        """What a step reads, ordered before whatever the caller does next. Call `done` after that."""
        if not self._overlap:
            return self._make(step)
        if self._ahead != step:
            # What is there already, weights and images, was written on the caller's stream.
            self._stream.wait_stream(self._streams.current_stream())
            self._start(step)
        self._streams.current_stream().wait_event(self._ready[slot_of(step)])
        made = self._made[slot_of(step)]
        assert made is not None
        return made

    def begin(self, step: int) -> None:
        """Start to make what a later step reads; returns at once."""
        if self._overlap:
            self._start(step)

    def done(self, step: int) -> None:
        """The caller's work up to here was the last that reads the tensors of a step."""
        if self._overlap:
            self._free[slot_of(step)].record(self._streams.current_stream())

    def close(self) -> None:
        """Let everything go, ordered after what both sides have done so far."""
        main = self._streams.current_stream()
        self._stream.wait_stream(main)
        main.wait_stream(self._stream)
        self._made = [None] * _SLOTS
        self._ahead = None

    def _start(self, step: int) -> None:
        slot = slot_of(step)
        with self._streams.stream(self._stream):
            if self._made[slot] is not None:
                self._stream.wait_event(self._free[slot])
                self._made[slot] = None
            self._made[slot] = self._make(step)
            self._ready[slot].record(self._stream)
        self._ahead = step
