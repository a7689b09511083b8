"""Argument checks that the public functions share. Each raises one clear error with the offending value in it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from eco_kernels.bicubic import BORDERS, ROUNDINGS, SCALES

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
KINDS = ("l1", "l2", "charbonnier")
CHARBONNIER_EPS = 1e-3
"""Charbonnier's epsilon, on the scaled difference."""
_INTEGERS = (torch.int64, torch.int32)


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
        tensor = check_tensor(name, value, 1, _INTEGERS)
        if tensor.device.type != "cpu":
            check_device(name, tensor, device)
        if batch not in (-1, len(tensor)):
            raise ValueError(f"{name} has {len(tensor)} entries; the other index tensors have {batch}")
        batch = len(tensor)
    return batch


def check_factor(name: str, value: object, device: torch.device) -> None:
    """A number, or a 0-dim fp32 tensor on `device`."""
    if isinstance(value, Tensor):
        if value.dtype != torch.float32:
            raise TypeError(f"{name} has dtype {value.dtype}; it must be torch.float32")
        check_shape(name, value, ())
        check_device(name, value, device)
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is a {type(value).__name__}; it must be a number or a 0-dim float32 tensor")


def check_windows(
    lr: Tensor, top: Tensor | None, left: Tensor | None, patch: int | None, orientation: Tensor | None
) -> None:
    """The patches and orientations of a batch of windows `lr`.

    Indices on an accelerator are not read: that would wait for it.
    """
    batch, _, height, width = lr.shape
    place = {"top": top, "left": left, "patch": patch}
    missing = [name for name, value in place.items() if value is None]
    if missing and len(missing) < 3:
        raise ValueError(f"{' and '.join(missing)} missing; top, left and patch come together")
    limits: dict[str, tuple[Tensor, int]] = {}
    if top is not None and left is not None and patch is not None:
        _check_count("patch", patch)
        if patch > min(height, width):
            raise ValueError(f"patch is {patch}; the window has {height} x {width} LR pixels")
        limits |= {"top": (top, height - patch), "left": (left, width - patch)}
    elif orientation is not None and height != width:
        raise ValueError(f"the window is {height} x {width}; only square ones can be oriented")
    if orientation is not None:
        limits["orientation"] = (orientation, 7)
    for name, (value, highest) in limits.items():
        check_indices(lr.device, **{name: value})
        check_shape(name, value, (batch,))
        if value.device.type == "cpu":
            _check_range(name, value, highest)


def check_store(
    stores: dict[str, Tensor], offsets: Tensor, widths: Tensor, plan: Sequence[Tensor], patch: int, channels: int
) -> None:
    """Flat stores and the patches to be cut from them: `plan` is index, top, left, orientation.

    The ranges are read on the CPU only, where they cost microseconds; on an accelerator that would wait for it.
    """
    first = next(iter(stores.values()))
    for name, store in stores.items():
        check_tensor(name, store, 1, (torch.uint8,))
        check_shape(name, store, first.shape)
        check_device(name, store, first.device)
        if not store.is_contiguous():
            raise ValueError(f"{name} has stride {store.stride()}; a store must be contiguous")
    check_tensor("offsets", offsets, 1, (torch.int64,))
    check_tensor("widths", widths, 1, _INTEGERS)
    check_shape("widths", widths, offsets.shape)
    check_device("offsets", offsets, first.device)
    check_device("widths", widths, first.device)
    _check_count("patch", patch)
    _check_count("channels", channels)
    index, top, left, orientation = plan
    check_indices(first.device, index=index, top=top, left=left, orientation=orientation)
    if all(tensor.device.type == "cpu" for tensor in (first, *plan)):
        _check_range("index", index, len(offsets) - 1)
        _check_range("orientation", orientation, 7)
        _check_patches(first.numel(), offsets, widths, index, top, left, patch, channels)


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; it must be a positive integer")


def _check_range(name: str, value: Tensor, highest: int) -> None:
    low, high = value.min().item(), value.max().item()
    if low < 0 or high > highest:
        raise ValueError(f"{name} holds {low if low < 0 else high}; it must lie in 0 .. {highest}")


def _check_patches(
    elements: int, offsets: Tensor, widths: Tensor, index: Tensor, top: Tensor, left: Tensor, patch: int, channels: int
) -> None:
    start, width = offsets[index], widths[index]
    limit = torch.cat((offsets, offsets.new_tensor([elements])))[index + 1]
    last = start + ((top + patch - 1) * width + left + patch) * channels
    bad = (top < 0) | (left < 0) | (left + patch > width) | (last > limit) | (start % channels != 0)
    if bad.any():
        k = int(bad.nonzero()[0])
        raise ValueError(
            f"sample {k}: a patch of {patch} at top {int(top[k])}, left {int(left[k])} is not inside image"
            f" {int(index[k])} (width {int(width[k])}, elements {int(start[k])} to {int(limit[k])})"
        )
