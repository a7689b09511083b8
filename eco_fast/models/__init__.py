"""The networks, by name. All map float (B, 3, h, w) in [0, 1] to float32 (B, 3, scale h, scale w)."""

import importlib
from typing import TYPE_CHECKING, Any

from eco_fast.errors import UserError
from eco_fast.models.table import NETWORKS

if TYPE_CHECKING:
    from torch import nn

SCALES = (2, 3, 4)


def names() -> list[str]:
    """The networks of this package; `build` also takes those of `spandrel_networks`."""
    return list(NETWORKS)


def build(name: str, scale: int, **options: Any) -> "nn.Module":
    """A network with fresh weights (torch's generator decides them); it has the attribute `scale`.

    `options` replace the named network's sizes: `blocks`, `channels` and `res_scale` of EDSR, `groups`, `blocks` and
    `channels` of RCAN, `blocks`, `channels` and `inner_channels` of RLFN, the arguments of the class for spandrel.
    Raises UserError for an unknown name, scale or option and for sizes below 1.
    """
    # Imported here and not above, so that asking for `names` does not load PyTorch.
    from eco_fast.models import spandrel_networks

    if name not in NETWORKS and not spandrel_networks.is_name(name):
        known = ", ".join((*NETWORKS, *spandrel_networks.names()))
        raise UserError(f"unknown network {name!r}; there are {known} and {spandrel_networks.PREFIX}ARCHITECTURE")
    if scale not in SCALES:
        raise UserError(f"{name} has no scale {scale!r}; take one of {', '.join(map(str, SCALES))}")
    if name not in NETWORKS:
        return spandrel_networks.build(name, scale, **options)
    place, sizes = NETWORKS[name]
    for option, value in options.items():
        if option not in sizes:
            raise UserError(f"{name} has no option {option!r}; it has {', '.join(sizes)}")
        kind = type(sizes[option])
        if isinstance(value, bool) or not isinstance(value, (int, kind)) or (kind is int and value < 1):
            wanted = "a whole number above 0" if kind is int else "a number"
            raise UserError(f"{option} of {name} must be {wanted}, not {value!r}")
    module, class_name = place.split(":")
    network: nn.Module = getattr(importlib.import_module(f"eco_fast.models.{module}"), class_name)(
        scale, **(sizes | options)
    )
    return network


def architecture_of(network: "nn.Module") -> str:
    """What the kind of a network is called: `EDSR`, `SwinIR`."""
    return str(getattr(network, "architecture", type(network).__name__))


def parameters_of(network: "nn.Module", *, trained: bool = False) -> int:
    """The number of a network's parameters, with `trained` of those that training changes."""
    return sum(each.numel() for each in network.parameters() if each.requires_grad or not trained)


def placed(network: "nn.Module", device: str) -> "nn.Module":
    """The network on a device, its weights in channels_last layout, in which convolutions are fastest; the same one."""
    import torch

    moved: nn.Module = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved
