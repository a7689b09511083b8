"""The networks, by name. All map float (B, 3, h, w) in [0, 1] to float32 (B, 3, scale h, scale w)."""

from typing import Any

from torch import nn

from eco_fast.errors import UserError
from eco_fast.models import spandrel_networks
from eco_fast.models.edsr import EDSR
from eco_fast.models.rcan import RCAN
from eco_fast.models.rlfn import RLFN

SCALES = (2, 3, 4)

_NETWORKS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "edsr": (EDSR, {"blocks": 32, "channels": 256, "res_scale": 0.1}),
    "edsr-baseline": (EDSR, {"blocks": 16, "channels": 64, "res_scale": 1.0}),
    "edsr-tiny": (EDSR, {"blocks": 8, "channels": 32, "res_scale": 1.0}),
    "rcan": (RCAN, {"groups": 10, "blocks": 20, "channels": 64}),
    "rlfn": (RLFN, {"blocks": 6, "channels": 52, "inner_channels": 52}),
    "rlfn-s": (RLFN, {"blocks": 6, "channels": 48, "inner_channels": 48}),
    "rlfn-ntire": (RLFN, {"blocks": 4, "channels": 46, "inner_channels": 48}),
}


def names() -> list[str]:
    """The networks of this package; `build` also takes those of `spandrel_networks`."""
    return list(_NETWORKS)


def build(name: str, scale: int, **options: Any) -> nn.Module:
    """A network with fresh weights (torch's generator decides them); it has the attribute `scale`.

    `options` replace the named network's sizes: `blocks`, `channels` and `res_scale` of EDSR, `groups`, `blocks` and
    `channels` of RCAN, `blocks`, `channels` and `inner_channels` of RLFN, the arguments of the class for spandrel.
    Raises UserError for an unknown name, scale or option and for sizes below 1.
    """
    if name not in _NETWORKS and not spandrel_networks.is_name(name):
        known = ", ".join((*_NETWORKS, *spandrel_networks.names()))
        raise UserError(f"unknown network {name!r}; there are {known} and {spandrel_networks.PREFIX}ARCHITECTURE")
    if scale not in SCALES:
        raise UserError(f"{name} has no scale {scale!r}; take one of {', '.join(map(str, SCALES))}")
    if name not in _NETWORKS:
        return spandrel_networks.build(name, scale, **options)
    network, sizes = _NETWORKS[name]
    for option, value in options.items():
        if option not in sizes:
            raise UserError(f"{name} has no option {option!r}; it has {', '.join(sizes)}")
        kind = type(sizes[option])
        if isinstance(value, bool) or not isinstance(value, (int, kind)) or (kind is int and value < 1):
            wanted = "a whole number above 0" if kind is int else "a number"
            raise UserError(f"{option} of {name} must be {wanted}, not {value!r}")
    return network(scale, **(sizes | options))
