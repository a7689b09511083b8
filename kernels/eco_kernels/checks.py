"""Argument checks that the public functions share. Each raises one clear error with the offending value in it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from eco_kernels.bicubic import BORDERS, ROUNDINGS, SCALES

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32)


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """ValueError unless `value` is one of `choices`, of the same type too: 2.0 is no scale."""
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, choices))}")


def check_tensor(name: str, value: object, dims: int, dtypes: Sequence[torch.dtype]) -> Tensor:
    """TypeError unless `value` is a tensor of one of `dtypes`; ValueError unless it has `dims` non-empty dimensions."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}; it must be a tensor")
    if value.dtype not in dtypes:
        raise TypeError(f"{name} has dtype {value.dtype}; it must be one of {', '.join(map(str, dtypes))}")
    if value.ndim != dims:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; it must have {dims} dimensions")
    if value.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; it must not be empty")
    return value


def check_images(name: str, value: object) -> Tensor:
    """An image batch: non-empty `(B, C, H, W)`, uint8 or float."""
    return check_tensor(name, value, 4, (torch.uint8, *FLOATS))


def check_device(name: str, value: Tensor, device: torch.device) -> None:
    """ValueError unless `value` lies on `device`."""
    if value.device != device:
        raise ValueError(f"{name} is on {value.device}; it must be on {device} like the images")


def check_shape(name: str, value: Tensor, shape: Sequence[int]) -> None:
    """ValueError unless `value` has exactly `shape`."""
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {tuple(value.shape)}; it must be {tuple(shape)}")


def check_resize(name: str, value: Tensor, scale: int, rounding: str, border: str) -> None:
    """ValueError unless scale, rounding and border are known and the sides of `value` are multiples of the scale."""
    check_choice("scale", scale, SCALES)
    check_choice("rounding", rounding, ROUNDINGS)
    check_choice("border", border, BORDERS)
    height, width = value.shape[-2:]
    if height % scale or width % scale:
        raise ValueError(f"{name} is {height} x {width}; both sides must be multiples of the scale {scale}")


def check_per_sample(name: str, value: object, batch: int, device: torch.device, *, scalar: bool) -> Tensor:
    """An fp32 tensor `(B,)` on `device`; with `scalar` a 0-dim one will do."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}; it must be a float32 tensor")
    if value.dtype != torch.float32:
        raise TypeError(f"{name} has dtype {value.dtype}; it must be torch.float32")
    if value.shape != (batch,) and not (scalar and value.ndim == 0):
        allowed = f"() or ({batch},)" if scalar else f"({batch},)"
        raise ValueError(f"{name} has shape {tuple(value.shape)}; it must be {allowed}")
    check_device(name, value, device)
    return value


def check_indices(device: torch.device, **named: object) -> int:
    """1-D integer tensors of one length, on the CPU or on `device`; returns the length."""
    batch = -1
    for name, value in named.items():
        tensor = check_tensor(name, value, 1, INTEGERS)
        if tensor.device.type != "cpu":
            check_device(name, tensor, device)
        if batch not in (-1, len(tensor)):
            raise ValueError(f"{name} has {len(tensor)} entries; the other index tensors have {batch}")
        batch = len(tensor)
    return batch


def check_count(name: str, value: object) -> None:
    """ValueError unless `value` is a positive integer."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; it must be a positive integer")


def check_range(name: str, value: Tensor, highest: int) -> None:
    """ValueError unless all of `value` lies in 0 .. `highest`; this reads it."""
    low, high = value.min().item(), value.max().item()
    if low < 0 or high > highest:
        raise ValueError(f"{name} holds {low if low < 0 else high}; it must lie in 0 .. {highest}")
