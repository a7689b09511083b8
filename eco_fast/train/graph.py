"""Work as CUDA graphs: hundreds of launches become one."""

from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from eco_fast.config import Config
from eco_fast.train.optim import takes_device_scalars
from eco_fast.train.world import World

Result = TypeVar("Result", bound="tuple[Tensor | None, ...]")

_WARM_UP = 3  # calls of each kind that run as they are: libraries choose their kernels, memory finds its size

_BROKEN: list[Any] = []  # graphs whose capture failed: the allocator may still ask them


def why_not(config: Config, world: World) -> str | None:
    """What stands against graphs, None if nothing does.

    No source of images does: what its threads have read is copied to where a graph finds it, and they never call CUDA.
    """
    if config.run.device != "cuda":
        return "CUDA graphs need a CUDA device"
    if world.size > 1:
        return "it works with one process only"
    if not takes_device_scalars(config.optim):
        return f"the optimiser {config.optim.name} decides on the host whether to skip"
    return None


class Captured(NamedTuple):
    """A graph, where it reads, and where its results lie."""

    graph: Any
    inputs: tuple[Tensor | None, ...]
    results: Any


class Graphs:
    """Work that is repeated, as replays of CUDA graphs: one per slot of the lane.

    A graph holds one kind of work. When another kind comes, it runs as it is for some calls, then it is captured. Where
    a capture fails, since something waits for the host, work goes on as it is.
    """

    def __init__(
        self,
        what: str,
        device: torch.device | str,
        say: Callable[[str], None] = print,
        *,
        stay: bool = False,
        priority: int = 0,
        undo: Callable[[], None] = lambda: None,
    ) -> None:
        """Nothing is captured yet.

        Args:
            what: It is, for the line that says why a capture failed.
            device: Where the work reads.
            say: Told that line.
            stay: The inputs of a slot lie in one place in all calls; else they are copied to one.
            priority: Of its kernels, beside those of other graphs; lower is first.
            undo: Called after a failed capture, which has computed nothing.
        """
        self.captures = 0
        self._what, self._device, self._say = what, device, say
        self._stay, self._undo = stay, undo
        self._cuda: Any = torch.cuda
        self._stream = self._cuda.Stream(priority=priority)  # kernels keep that of the stream they were captured on
        self._kind: Hashable = None
        self._left = 0  # calls of this kind before the first capture
        self._captured: dict[int, Captured] = {}
        self._pool: Any = None
        self._failed = False

    def replays(self, slot: int, kind: Hashable) -> bool:
        """Whether a call replays a graph."""
        return kind == self._kind and slot in self._captured

    def __call__(self, slot: int, kind: Hashable, work: Callable[..., Result], *inputs: Tensor | None) -> Result:
        """Do the work.

        Args:
            slot: Of the lane.
            kind: Of the work: what it does and reads, and the shapes of the inputs, are the same for the same kind.
            work: By launches on the current stream alone.
            inputs: What changes from call to call: on the device, or pinned on its host.

        Returns:
            What `work` does. The next call of the slot overwrites it.
        """
        if kind != self._kind:
            self._forget()
            self._kind, self._left = kind, _WARM_UP
        if self._left or self._failed:
            self._left = max(0, self._left - 1)
            return self._as_it_is(work, inputs)
        if slot not in self._captured and not self._capture(slot, work, inputs):
            return self._as_it_is(work, inputs)
        graph, places, results = self._captured[slot]
        for place, given in zip(places, inputs, strict=True):
            if place is not None and given is not None and place is not given:
                place.copy_(given, non_blocking=True)
        graph.replay()
        return results

    def _forget(self) -> None:
        if self._captured:
            self._cuda.synchronize()  # their last replays may still run
        self._captured.clear()
        self._pool = None

    def _as_it_is(self, work: Callable[..., Result], inputs: tuple[Tensor | None, ...]) -> Result:
        """On the stream of the captures: autograd remembers the one on which it first met a weight."""
        main = self._cuda.current_stream()
        self._stream.wait_stream(main)
        with self._cuda.stream(self._stream):
            results = work(*(None if t is None else t.to(self._device, non_blocking=True) for t in inputs))
        main.wait_stream(self._stream)
        for tensor in results:
            if tensor is not None:
                tensor.record_stream(main)
        return results

    def _capture(self, slot: int, work: Callable[..., Result], inputs: tuple[Tensor | None, ...]) -> bool:
        """Capture the work; whether that went well."""
        places = inputs
        if not self._stay:
            places = tuple(None if t is None else t.to(self._device, copy=True) for t in inputs)
        # The graphs of both slots share memory for what is between: they never run at the same time.
        self._pool = self._pool or self._cuda.graph_pool_handle()
        graph, main = self._cuda.CUDAGraph(), self._cuda.current_stream()
        try:
            # Other threads, those of the data path, go on meanwhile and may do what a capture forbids.
            with self._cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                results = work(*places)
        except RuntimeError as error:
            cause = error.__context__ or error  # the end of a capture that broke off fails too
            reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
            self._say(f"no CUDA graph can hold {self._what} ({reason}); it is launched piece by piece, which is slower")
            _BROKEN.append(graph)
            self._failed = True
            self._leave(main)
            self._undo()
            self._forget()
            return False
        self._captured[slot] = Captured(graph, places, results)
        self.captures += 1
        return True

    def _leave(self, main: Any) -> None:
        """Finish what PyTorch leaves open where a capture breaks off.

        That is the stream; the allocator's private pool, without which memory that two streams have used would never be
        free again; and, before PyTorch 2.13, random numbers, which a capture that ends well sets right.
        """
        self._cuda.set_stream(main)
        device = self._cuda.current_device()
        with suppress(RuntimeError):  # it was closed
            torch._C._cuda_endAllocateToPool(device, self._pool)
            torch._C._cuda_releasePool(device, self._pool)
        with (
            suppress(RuntimeError),
            self._cuda.graph(self._cuda.CUDAGraph(), stream=self._stream, capture_error_mode="thread_local"),
        ):
            torch.zeros(1, device=self._device)
