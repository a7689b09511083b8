"""The processes of a run: one by itself, or several started by torchrun, on one machine or on more."""

import gc
import itertools
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from eco_fast.errors import SaidElsewhere, UserError

T = TypeVar("T")

_joins = itertools.count()  # of this process; all join equally often

_JOINING = timedelta(minutes=5)  # for all processes to start: one that could not is not waited for any longer
_CONNECTING = timedelta(minutes=2)
_PATIENCE = timedelta(days=2)  # the others wait while one process prepares images


@dataclass(frozen=True)
class World:
    """Which process this is, and where all of them run."""

    rank: int = 0
    size: int = 1
    places: tuple[str, ...] = ()  # the machine of every process, by its name; of a process by itself none is known

    @property
    def leads(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    @property
    def leads_machine(self) -> bool:
        """Whether this process is the first one on its machine."""
        return not self.places or self.places.index(self.places[self.rank]) == self.rank

    @property
    def machines(self) -> list[str]:
        """Their names, the one of the first process first."""
        return list(dict.fromkeys(self.places))

    def part(self, items: Sequence[T]) -> Sequence[T]:
        """What is this process's to do: every `size`-th item."""
        return items[self.rank :: self.size]

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

    def gather(self, value: T) -> list[T]:
        """The plain value that each process has, by rank; the same list on each."""
        if self.size == 1:
            return [value]
        values = [value] * self.size
        dist.all_gather_object(values, value)
        return values

    def share(self, value: T) -> T:
        """The value that the first process has, on each."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def copy(self, tensors: Iterable[Tensor]) -> None:
        """Give the tensors of every process the values that the first one's have, bit for bit."""
        if self.size == 1:
            return
        for tensor in tensors:
            plain = tensor.detach().contiguous()  # in one order of memory, whatever that of the tensor
            dist.broadcast(plain, src=0)
            tensor.detach().copy_(plain)

    @contextmanager
    def agree(self) -> Iterator[None]:
        """What fails inside on one process fails on all: nobody waits for one that has ended.

        Inside, each process works by itself; none may wait there for another.

        Raises:
            UserError: That of the first process that failed, on every process; it names the machine if there are more.
        """
        if self.size == 1:
            yield
            return
        own: Exception | None = None
        try:
            yield
        except Exception as error:
            own = error
        said = None if own is None else str(own) if isinstance(own, UserError) else f"{type(own).__name__}: {own}"
        faults = self.gather(said)
        if own is not None and not isinstance(own, UserError):
            raise own  # a bug: where it came from is worth more than one line
        for place, fault in zip(self.places, faults, strict=True):
            if fault is not None:
                raise self.fault(f"{place}: {fault}" if len(self.machines) > 1 else fault) from own

    def fault(self, text: str) -> UserError:
        """An error that every process raises: one on each machine says it."""
        return UserError(text) if self.leads_machine else SaidElsewhere(text)


def join_world() -> World:
    """Join the processes that torchrun started; a process by itself is a world of one.

    Raises:
        UserError: Some did not come.
    """
    if not among_others():
        return World()
    if not dist.is_initialized():
        store, rank, size = _assemble()
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE)
    world = World(dist.get_rank(), dist.get_world_size())
    return replace(world, places=_places(world.gather((socket.gethostname(), os.environ.get("GROUP_RANK", "0")))))


def among_others() -> bool:
    """Whether torchrun, or somebody in its manner, started this process."""
    return "LOCAL_RANK" in os.environ


def take_gpu() -> None:
    """Make the GPU that is this process's own the current one.

    Raises:
        UserError: There are more processes on this machine than GPUs.
    """
    if not among_others():
        return
    local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= count:
        raise UserError(f"process {local} has no GPU, there are {count}; lower --nproc-per-node")
    torch.cuda.set_device(local)


def _assemble() -> tuple[Any, int, int]:
    """Wait until all processes are there and reach each other: the store they meet in, this one's rank, their number.

    A group is made on trial, since the real one would go on trying for as long as it has patience.
    """
    try:
        store, rank, size = next(iter(rendezvous("env://", timeout=_JOINING)))
        store = PrefixStore(f"eco-fast/{next(_joins)}", store)  # torchrun's outlives a group: addresses of an older one
        _meet_in(store, "here", size, _JOINING)
    except dist.DistError as error:
        raise UserError(
            f"not all {os.environ['WORLD_SIZE']} processes came within {_JOINING.seconds} seconds; see what torchrun "
            "prints on the other machines"
        ) from error
    try:
        trial = PrefixStore("trial", store)
        dist.init_process_group("gloo", store=trial, rank=rank, world_size=size, timeout=_CONNECTING)
        dist.destroy_process_group()
        _meet_in(store, "connected", size, _CONNECTING)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"process {rank} on {socket.gethostname()} and the others do not reach each other: {reason}; name the "
            "network between the machines on each of them: GLOO_SOCKET_IFNAME=eth0, and NCCL_SOCKET_IFNAME for GPUs"
        ) from error
    return store, rank, size


def _meet_in(store: Any, place: str, size: int, patience: timedelta) -> None:
    if store.add(place, 1) == size:
        store.set(f"{place}/all", "")
    store.wait([f"{place}/all"], patience)


def _places(found: list[tuple[str, str]]) -> tuple[str, ...]:
    """A name for the machine of every process: the host's, and torchrun's number where hosts are called the same."""
    nodes = {host: {node for other, node in found if other == host} for host, _ in found}
    return tuple(host if len(nodes[host]) == 1 else f"{host} (node {node})" for host, node in found)


def leave_world() -> None:
    """End the process group, if there is one.

    Its threads have to end before the interpreter does: one that frees a tensor later aborts the process
    (https://github.com/pytorch/pytorch/pull/179291). They end with the group, which cycles of references may still
    hold.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
        gc.collect()
