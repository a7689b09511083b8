"""A network through torch.compile: as a whole, or block by block where it has many equal ones."""

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

Forward = Callable[[Tensor], Tensor]

# CUDA graphs are captured by the run itself: those of the compiler share memory between networks that run side by side.
_MODES = {"default": "default", "max-autotune": "max-autotune-no-cudagraphs"}

_MANY = 17  # equal blocks that are compiled one by one

_TF32 = "TensorFloat32 tensor cores for float32 matrix multiplication available but not enabled"


def compiled(network: nn.Module, choice: str) -> Forward:
    """The network as a callable, compiled unless `choice` is "off".

    Of more than 16 equal blocks one is compiled, and its code serves all; other networks are compiled as a whole. The
    network itself stays as it is: evaluation calls it uncompiled, with images of any size, and cannot disturb the
    compiled one.
    """
    if choice == "off":
        return network
    # The run has its precision, and this is no advice for it. The compiler says it in the first step, not here.
    warnings.filterwarnings("ignore", _TF32, UserWarning, r"torch\._inductor\.compile_fx")
    options: dict[str, Any] = {"mode": _MODES[choice], "dynamic": False, "fullgraph": True}
    if next(repeated_blocks(network), None) is None:
        return torch.compile(network, **options)
    twin = _sharing(network)
    for block in repeated_blocks(twin):
        block.forward = torch.compile(block.forward, **options)
    return twin


def repeated_blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules of several layers of which there are many equal ones."""
    kinds = {module: _kind(module) for module in network.modules()}
    counts = Counter(kinds.values())

    def below(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            called = type(child).forward is not nn.Module.forward  # a list of layers is not
            if called and counts[kinds[child]] >= _MANY and _layers(child) > 1:
                yield child
            else:
                yield from below(child)

    return below(network)


def _layers(module: nn.Module) -> int:
    """How many parts have parameters."""
    return sum(1 for part in module.modules() if any(True for _ in part.parameters(recurse=False)))


def _kind(module: nn.Module) -> Hashable:
    """What compiled code depends on, of a module and all that is in it: classes, plain settings, forms of tensors."""
    return tuple((name, type(part), *_settings(part), *_tensors(part)) for name, part in module.named_modules())


def _settings(module: nn.Module) -> Iterator[Hashable]:
    for name, value in vars(module).items():
        if isinstance(value, bool | int | float | str | tuple | None):
            yield name, repr(value)


def _tensors(module: nn.Module) -> Iterator[Hashable]:
    tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    for name, tensor in tensors:
        yield name, tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad


def _sharing(network: nn.Module) -> nn.Module:
    """A twin of a network with its tensors."""
    tensors = (*network.parameters(), *network.buffers())
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})
