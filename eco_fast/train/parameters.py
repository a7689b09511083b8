"""A network's trained parameters in flat buffers: weights, gradients, average, and what a forward pass reads."""

import copy
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from eco_fast.train.machine import AUTOCAST, autocast, unsearched
from eco_kernels import Segments, first_blocks
from eco_kernels.update import BLOCK

_BUCKET = 25 << 20  # bytes of gradients that processes exchange at a time, while earlier layers still compute theirs


class Parameters:
    """The trained parameters of a network as views of flat buffers, so that an update is a few passes over memory.

    Under autocast every step would round every weight by an operation of its own, and its gradient back. Here a rounded
    copy of all weights lies beside them, `low`, written by the update; the forward pass reads that, to the same bits.
    """

    def __init__(self, network: nn.Module, *, average: bool, precision: str, rounded: Collection[Tensor] = ()) -> None:
        """Move the parameters of a network into buffers.

        Args:
            network: On its device; its own parameters become views, with the values and layouts that they have.
            average: Keep an average of the weights.
            precision: Of the run.
            rounded: The parameters that autocast rounds, see `rounded_by_autocast`; none for other precisions.
        """
        self.network = network
        self.tensors = [p for p in network.parameters() if p.requires_grad and p.numel()]
        sizes = [p.numel() for p in self.tensors]
        self.starts = [block * BLOCK for block in first_blocks(sizes)]
        self.segments = Segments.of(sizes, self.tensors[0].device)
        self.weights, self.gradients = self.buffer(), self.buffer()
        for parameter, view in zip(self.tensors, self.views(self.weights), strict=True):
            parameter.data = view.copy_(parameter.detach())
        self.average = self.weights.clone() if average else None
        self.low = self.weights.to(AUTOCAST[precision]) if rounded else None
        self.gradient_views = self.views(self.gradients)
        self._averaged = network if self.average is None else self._averaging(self.average)
        chosen = {id(parameter) for parameter in rounded}
        lows = self.views(self.low) if self.low is not None else self.tensors
        self.leaves = [
            nn.Parameter(low) if id(parameter) in chosen else parameter
            for parameter, low in zip(self.tensors, lows, strict=True)
        ]
        self.read = self._reading() if rounded else network
        """The network that a forward pass calls: autograd's gradients go to its parameters, `gather` collects them."""

    def buffer(self) -> Tensor:
        """Zeros for every element of the parameters."""
        return torch.zeros(self.starts[-1], device=self.tensors[0].device)

    def views(self, buffer: Tensor) -> list[Tensor]:
        """What of a buffer belongs to each parameter, in its shape and layout."""
        return [
            buffer[start : start + p.numel()].as_strided(p.shape, torch.empty_like(p).stride())
            for start, p in zip(self.starts, self.tensors, strict=False)
        ]

    @property
    def averaged(self) -> nn.Module:
        """The network with averaged weights, or the network itself where no average is kept.

        Its buffers, such as statistics of a normalisation, are those of now.
        """
        for ours, theirs in zip(self._averaged.buffers(), self.network.buffers(), strict=True):
            if ours is not theirs:
                ours.copy_(theirs)
        return self._averaged

    def refresh(self) -> None:
        """Round the weights of now for the next forward pass: they were changed by something else than an update."""
        if self.low is not None:
            self.low.copy_(self.weights)

    def forget(self) -> None:
        """Drop what a backward pass that did not end has left."""
        for leaf in self.leaves:
            leaf.grad = None

    def gather(self, *, add: bool = False) -> None:
        """Collect the gradients of a backward pass in the buffer, or add them to those that are there."""
        self.take(range(len(self.tensors)), add=add)

    def take(self, numbers: Collection[int], *, add: bool = False) -> None:
        """The gradients of some parameters."""
        found = [(self.gradient_views[i], self.leaves[i].grad) for i in numbers]
        for view, gradient in found:
            if gradient is None and not add:  # the loss does not depend on it
                view.zero_()
        # PyTorch takes many tensors in one launch where they are all of one type.
        for kind in {gradient.dtype for _, gradient in found if gradient is not None}:
            views, gradients = zip(*((v, g) for v, g in found if g is not None and g.dtype == kind), strict=True)
            (torch._foreach_add_ if add else torch._foreach_copy_)(views, gradients)
        for i in numbers:
            self.leaves[i].grad = None

    def _averaging(self, average: Tensor) -> nn.Module:
        memo: dict[int, Any] = {
            id(parameter): nn.Parameter(view, requires_grad=False)
            for parameter, view in zip(self.tensors, self.views(average), strict=True)
        }
        return copy.deepcopy(self.network, memo).eval().requires_grad_(False)

    def _reading(self) -> nn.Module:
        """A twin of the network with the low copies among its parameters; all other tensors are the network's own."""
        memo: dict[int, Any] = {id(tensor): tensor for tensor in (*self.network.parameters(), *self.network.buffers())}
        memo |= {id(parameter): leaf for parameter, leaf in zip(self.tensors, self.leaves, strict=True)}
        return copy.deepcopy(self.network, memo).train()


class Exchange:
    """Averages gradients over the processes of a run, in pieces: one travels while earlier layers compute theirs."""

    def __init__(self, parameters: Parameters, processes: int) -> None:
        """Nothing is exchanged yet.

        Args:
            parameters: Whose gradients.
            processes: How many there are; all call the same, in the same order.
        """
        self._parameters, self._processes = parameters, processes
        self._pieces = list(_pieces(parameters))
        self._of = {i: number for number, piece in enumerate(self._pieces) for i in piece}
        self._left: list[int] = []
        self._sent: list[Any] = []
        for i, leaf in enumerate(parameters.leaves):
            leaf.register_post_accumulate_grad_hook(self._counts(i))

    def begin(self) -> None:
        """The next backward pass brings gradients that are sent off as they come."""
        self._left, self._sent = [len(piece) for piece in self._pieces], []

    def finish(self) -> None:
        """Send what is left, and wait for all: the buffer then holds the mean over the processes."""
        while len(self._sent) < len(self._pieces):
            self._send()
        for work in self._sent:
            work.wait()
        self._parameters.gradients.div_(self._processes)
        self._left = []

    def _counts(self, i: int) -> Callable[[Tensor], None]:
        def one_more(_: Tensor) -> None:
            if not self._left:
                return
            self._left[self._of[i]] -= 1
            # In one order, the same on every process, whichever comes first.
            while len(self._sent) < len(self._pieces) and self._left[len(self._sent)] == 0:
                self._send()

        return one_more

    def _send(self) -> None:
        piece, parameters = self._pieces[len(self._sent)], self._parameters
        parameters.take(piece)
        begin, end = parameters.starts[piece[0]], parameters.starts[piece[-1] + 1]
        self._sent.append(dist.all_reduce(parameters.gradients[begin:end], async_op=True))


def _pieces(parameters: Parameters) -> Iterator[range]:
    """Runs of parameters from the last to the first, in which order gradients come."""
    end = len(parameters.tensors)
    while end:
        start = end - 1
        while start and 4 * (parameters.starts[end] - parameters.starts[start - 1]) <= _BUCKET:
            start -= 1
        yield range(start, end)
        end = start


_ROUNDING = {F.conv2d, torch.conv2d, F.conv_transpose2d, torch.conv_transpose2d, F.linear}


class _Watch(TorchFunctionMode):
    """Notes which tensors autocast rounds where they are used, and which are used in other ways."""

    def __init__(self, device_type: str) -> None:
        self.rounded: set[int] = set()
        self.others: set[int] = set()
        self._device_type = device_type

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rounds = func in _ROUNDING and torch.is_autocast_enabled(self._device_type)
        seen = self.rounded if rounds else self.others
        seen.update(id(value) for value in (*args, *(kwargs or {}).values()) if isinstance(value, nn.Parameter))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def rounded_by_autocast(network: nn.Module, example: Tensor, precision: str) -> list[Tensor]:
    """The trained parameters that a forward pass under autocast does nothing with but round.

    Args:
        network: On its device; a copy of it is called.
        example: An input.
        precision: Of the run; empty for one without autocast.
    """
    if precision not in AUTOCAST:
        return []
    twin, device_type = copy.deepcopy(network), example.device.type
    gpus = [example.device] if device_type == "cuda" else []
    with (
        torch.random.fork_rng(gpus),
        unsearched(),
        autocast(precision, device_type),
        _Watch(device_type) as watch,
    ):
        twin(example)
    found = watch.rounded - watch.others
    return [
        ours
        for ours, theirs in zip(network.parameters(), twin.parameters(), strict=True)
        if id(theirs) in found and ours.requires_grad
    ]
