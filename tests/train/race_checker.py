"""Streams without a GPU: every operation runs at once, and PyTorch's own race checker judges the order they ask for.

The event handler of `torch.cuda._sanitizer` is pure Python. It is fed here with the operations that a dispatch mode
sees and with the events of `Streams`, which stands in for `torch.cuda`. It knows nothing of CUDA graphs or time.
"""

import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from torch.cuda._sanitizer import EventHandler
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

MAIN = 0


class Streams:
    """`Stream`, `Event`, `stream` and `current_stream` as the lane uses them. `drop` names a call that is left out."""

    def __init__(self, drop: str | None = None) -> None:
        self.handler = EventHandler()
        self.sites: set[str] = set()
        self._drop, self._numbers = drop, count(1)
        self._current = Stream(self, MAIN)

    def Stream(self) -> "Stream":
        number = next(self._numbers)
        self.handler._handle_stream_creation(number)
        return Stream(self, number)

    def Event(self) -> "Event":
        number = next(self._numbers)
        self.handler._handle_event_creation(number)
        return Event(self, number)

    def current_stream(self) -> "Stream":
        return self._current

    @contextmanager
    def stream(self, stream: "Stream") -> Iterator[None]:
        before, self._current = self._current, stream
        yield
        self._current = before

    def allowed(self, kind: str) -> bool:
        """Whether a call is made; notes where it stands: "take:wait_event"."""
        site = f"{sys._getframe(2).f_code.co_name}:{kind}"
        self.sites.add(site)
        return site != self._drop


class Stream:
    def __init__(self, streams: Streams, number: int) -> None:
        self.streams, self.number = streams, number

    def wait_event(self, event: "Event") -> None:
        if self.streams.allowed("wait_event"):
            self.streams.handler._handle_event_wait(event.number, self.number)

    def wait_stream(self, other: "Stream") -> None:
        if self.streams.allowed("wait_stream"):
            event = self.streams.Event()
            self.streams.handler._handle_event_record(event.number, other.number)
            self.streams.handler._handle_event_wait(event.number, self.number)


class Event:
    def __init__(self, streams: Streams, number: int) -> None:
        self.streams, self.number = streams, number

    def record(self, stream: Stream) -> None:
        if self.streams.allowed("record"):
            self.streams.handler._handle_event_record(self.number, stream.number)


class RaceChecker(TorchDispatchMode):
    """Tells the handler what every operation reads and writes; `races` are what it objects to.

    Memory is known by its storage, not its address, which is soon used again. Memory that is let go belongs to the
    stream it was allocated on, whose next operation may write there: that is the write that is checked at its end.
    """

    def __init__(self, streams: Streams) -> None:
        super().__init__()
        self.streams, self.races = streams, []
        self.last: dict[int, int] = {}  # stream -> number of its last operation
        self._uids: dict[int, int] = {}
        self._next = count(1)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        reads: set[int] = set()
        written: set[int] = set()
        schema = func._schema
        named = {argument.name: argument for argument in schema.arguments}
        given = dict(zip([argument.name for argument in schema.arguments], args, strict=False)) | kwargs
        for name, value in given.items():
            alias = named[name].alias_info
            places = {self._uid(x) for x in pytree.tree_leaves(value) if isinstance(x, torch.Tensor)}
            if alias is not None and alias.is_write:
                written |= places
            elif alias is None:
                reads |= places
        result = func(*args, **kwargs)
        for returned, value in zip(schema.returns, result if len(schema.returns) > 1 else (result,), strict=False):
            if returned.alias_info is None:
                written |= {self._uid(x) for x in pytree.tree_leaves(value) if isinstance(x, torch.Tensor)}
        self._launch(self.streams.current_stream().number, reads - written, written, str(schema.name))
        return result

    def _launch(self, stream: int, reads: set[int], written: set[int], name: str) -> None:
        aliases: dict[int, list[str]] = {uid: [] for uid in reads | written}
        self.races += self.streams.handler._handle_kernel_launch(stream, reads, written, set(), name, aliases)
        self.last[stream] = self.streams.handler.seq_num

    def _uid(self, tensor: torch.Tensor) -> int:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._uids:
            uid = self._uids[key] = next(self._next)
            self.streams.handler._handle_memory_allocation(uid)
            weakref.finalize(storage, self._freed, key, uid, self.streams.current_stream().number)
        return self._uids[key]

    def _freed(self, key: int, uid: int, stream: int) -> None:
        self._launch(stream, set(), {uid}, "the next use of freed memory")
        self.streams.handler._handle_memory_deallocation(uid)
        del self._uids[key]
