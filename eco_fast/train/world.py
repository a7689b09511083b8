"""The processes of a run: one by itself, or several started by torchrun."""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from eco_fast.errors import UserError

_PATIENCE = timedelta(days=2)  # the others wait while one process prepares images


@dataclass(frozen=True)
class World:
    """Which process this is."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all processes of a tensor, the same on each; in place, ordered on the device."""
        if self.size > 1:
            dist.all_reduce(value)
            value /= self.size
        return value

    def sums(self, values: list[float]) -> list[float]:
        """The sum of each value over all processes, the same on each; no device is waited for."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return list(total.tolist())

    def any(self, flag: bool) -> bool:
        """Whether any process says so; the same on each."""
        return self.sums([float(flag)])[0] > 0

    def meet(self) -> None:
        """Wait until every process is here."""
        self.sums([0.0])

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """The first process does what is inside, then all others: they find what it has written."""
        if not self.leads:
            self.meet()
        yield
        if self.leads:
            self.meet()

    def wrap(self, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Average gradients over the processes in every backward pass."""
        if self.size == 1:
            return forward
        assert isinstance(forward, nn.Module)
        on_gpu = next(forward.parameters()).is_cuda
        ids = [torch.cuda.current_device()] if on_gpu else None
        return nn.parallel.DistributedDataParallel(forward, device_ids=ids, gradient_as_bucket_view=True)


def join_world(device_type: str) -> World:
    """Join the processes that torchrun started; a process by itself is a world of one.

    Raises:
        UserError: There are more processes on this machine than GPUs.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ and "LOCAL_RANK" not in os.environ:
        return World()
    if device_type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise UserError(
                f"process {local} has no GPU, there are {torch.cuda.device_count()}; lower --nproc-per-node"
            )
        torch.cuda.set_device(local)
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo", timeout=_PATIENCE)
    return World(dist.get_rank(), dist.get_world_size())


def leave_world() -> None:
    """End the process group, if there is one.

    Its threads have to end before the interpreter does: one that frees a tensor later aborts the process
    (https://github.com/pytorch/pytorch/pull/179291). They end with the group, which cycles of references may still
    hold.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
        gc.collect()
