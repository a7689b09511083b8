"""Which network a file of weights is for: by its header, or by the names and shapes it holds."""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eco_fast.errors import UserError
from eco_fast.models import SCALES, build, names
from eco_fast.models.layers import mean_shift_state

Shapes = dict[str, tuple[int, ...]]

_LARGEST_SIZE = 1024  # of an option in a header, where the file itself holds nothing larger


def shapes_of(state: Mapping[str, Tensor]) -> Shapes:
    """Names and shapes of a state dict."""
    return {key: tuple(value.shape) for key, value in state.items()}


def recognise(shapes: Shapes) -> list[tuple[str, int]]:
    """Name and scale of the networks of this package with exactly these parameters, with or without mean shifts."""
    constants = mean_shift_state().keys()
    return [
        (name, scale)
        for name in names()
        for scale in SCALES
        if (wanted := _registered_shapes(name, scale)) == shapes
        or {key: shape for key, shape in wanted.items() if key not in constants} == shapes
    ]


@lru_cache
def _registered_shapes(name: str, scale: int) -> Shapes:
    with torch.device("meta"):
        return shapes_of(build(name, scale).state_dict())


def named_in(metadata: Mapping[str, str], shapes: Shapes, path: Path) -> tuple[str, int, dict[str, Any]] | None:
    """Name, scale and options in a header; None if it names no network.

    Raises UserError for a header that cannot be read, or that tells of sizes far beyond what the file holds: a network
    built to them could take all memory.
    """
    if "model" not in metadata:
        return None
    try:
        name, scale = metadata["model"], int(metadata["scale"])
        options = dict(json.loads(metadata.get("options", "{}")))
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} has a damaged header ({error!r}); export the weights again") from error
    largest = max(_LARGEST_SIZE, len(shapes), *(side for shape in shapes.values() for side in shape))
    for option, value in options.items():
        values = value if isinstance(value, list) else [value]
        if any(isinstance(size, int) and size > largest for size in values) or len(values) > largest:
            raise UserError(f"{path} has a damaged header ({option} is beyond its weights); export the weights again")
    return name, scale, options


def explain(wanted: Shapes, given: Shapes, metadata: Mapping[str, str], path: Path) -> str:
    """One line on why weights of shapes `given` do not fit a network of shapes `wanted`."""
    here = "".join(f", not {name} x{scale}" for name, scale in recognise(wanted))
    named = named_in(metadata, given, path)
    fits = [named[:2]] if named else recognise(given)
    if len(fits) == 1:
        name, scale = fits[0]
        return f"{path} holds {name} x{scale} weights{here}; give weights of the same network and scale"
    if not wanted.keys() & given.keys():
        return f"{path} holds another network (it has {next(iter(given))!r}, unknown here); name that network"
    key = first_difference(wanted, given)
    found, expected = given.get(key, "nothing"), wanted.get(key, "nothing")
    matched = sum(given.get(other) == shape for other, shape in wanted.items())
    return (
        f"{path} does not fit: {key} is {found} where the network{here} has {expected} "
        f"({matched} of {len(wanted)} tensors match); give weights of the same network and scale"
    )


def first_difference(wanted: Shapes, given: Shapes) -> str:
    """The first name whose shapes differ or that only one of the two has; there must be one."""
    return next(key for key in (*wanted, *given) if wanted.get(key) != given.get(key))
