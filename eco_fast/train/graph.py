"""One update as a CUDA graph: hundreds of launches become one."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from eco_fast.config import Config
from eco_fast.train.batches import Batch
from eco_fast.train.optim import takes_device_scalars
from eco_fast.train.update import Update
from eco_fast.train.world import World

_WARM_UP = 3  # updates of each kind that run as they are: libraries choose their kernels, memory finds its size


def why_not(config: Config, world: World) -> str | None:
    """What stands against a graph, None if nothing does.

    No source of images does: batches are made outside, and threads that read ahead never call CUDA.
    """
    if config.run.device != "cuda":
        return "CUDA graphs need a CUDA device"
    if world.size > 1:
        return "it works with one process only"
    if not takes_device_scalars(config.optim):
        return f"the optimiser {config.optim.name} decides on the host whether to skip"
    return None


class Graphed:
    """An update whose calls replay a graph; all that changes from step to step is copied to where the graph reads it.

    Batches are made outside, by the teacher's lane, which stays a step ahead. A graph holds one kind of batch: where
    alpha leaves 0 or reaches 1 the batch has other parts, and a new one is captured. Where a capture fails, since a
    network waits for the host, updates go on as they are.
    """

    def __init__(self, update: Update, cuda: Any = torch.cuda, say: Callable[[str], None] = print) -> None:
        """Nothing is captured yet.

        Args:
            update: Its learners are built for a graph: they read what changes from step to step on the device.
            cuda: The module with `Stream`, `stream`, `CUDAGraph` and `graph`.
            say: Told why a capture failed.
        """
        self.learners, self.times = update.learners, update.times
        self.graph: Any = None
        self._update, self._cuda, self._say = update, cuda, say
        self._failed = False
        # Before the teacher's lane, whose priority is 0: kernels keep that of the stream they were captured on.
        self._stream = cuda.Stream(priority=-1)
        self._parts: tuple[bool, ...] = ()  # which ones the batches of the graph have
        self._left = 0  # updates of this kind before the capture
        self._static: Batch | None = None
        self._result: tuple[Tensor, Tensor] | None = None

    def schedule(self, step: int) -> None:
        """See `Update`."""
        self._update.schedule(step)

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `Update`. The results are overwritten by the next call."""
        parts = tuple(tensor is not None for tensor in batch)
        if parts != self._parts:
            self._parts, self._left = parts, _WARM_UP
            self._forget()
        if self._left or self._failed:
            self._left = max(0, self._left - 1)
            return self._on_side_stream(batch)
        if self.graph is None and not self._captured(batch):
            return self._on_side_stream(batch)
        assert self._static is not None and self._result is not None
        for ours, theirs in zip(self._static, batch, strict=True):
            if ours is not None and theirs is not None:
                ours.copy_(theirs)
        with self.times.part("student"):
            self.graph.replay()
        return self._result

    def _forget(self) -> None:
        if self.graph is not None:
            self._cuda.synchronize()  # its last replay may still run
        self.graph = self._static = self._result = None

    def _on_side_stream(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Where the capture will run: autograd remembers the stream on which it first met a weight."""
        main = self._cuda.current_stream()
        self._stream.wait_stream(main)
        with self._cuda.stream(self._stream):
            result = self._update(batch)
        main.wait_stream(self._stream)
        for tensor in result:
            tensor.record_stream(main)
        return result

    def _captured(self, batch: Batch) -> bool:
        """Capture an update; whether that went well."""
        self._static = Batch._make(None if tensor is None else torch.empty_like(tensor) for tensor in batch)
        self.times.measure(False)  # an event that a capture holds cannot be read
        graph = self._cuda.CUDAGraph()
        try:
            # Other threads, those of the data path, go on meanwhile and may do what a capture forbids.
            with self._cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._result = self._update(self._static)
        except RuntimeError as error:  # nothing was computed: the device is where it was
            reason = str(error).strip().splitlines()[0]
            self._say(f"no CUDA graph can hold this update ({reason}); it is launched piece by piece, which is slower")
            self._failed = True
            for learner in self.learners.values():
                learner.parameters.forget()
            self._forget()
            return False
        self.graph = graph
        return True
