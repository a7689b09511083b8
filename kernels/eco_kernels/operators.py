"""The operations as registered PyTorch operators, for users who compile them into graphs of their own.

Called eagerly a public function goes straight to its implementation; under `torch.compile` and `torch.export` it
becomes one node, `torch.ops.eco_kernels.<name>`, with a fake kernel that knows shapes, and for the loss a derivative.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from eco_kernels import functional
from eco_kernels.layout import memory_format

Function = TypeVar("Function", bound=Callable[..., Tensor])


def _as_operator(function: Function) -> Function:
    """Register `function` as an operator of its name, and call that one in a graph."""
    operator = torch.library.custom_op(f"eco_kernels::{function.__name__}", function, mutates_args=())

    @wraps(function)
    def public(*args: Any, **kwargs: Any) -> Tensor:
        return operator(*args, **kwargs) if torch.compiler.is_compiling() else function(*args, **kwargs)

    return cast(Function, public)


gather_patches = _as_operator(functional.gather_patches)
gather_mix = _as_operator(functional.gather_mix)
bicubic_downsample = _as_operator(functional.bicubic_downsample)
downsample_mix = _as_operator(functional.downsample_mix)


@torch.library.custom_op("eco_kernels::eco_l1_with_grad", mutates_args=())
def _eco_l1_with_grad(
    sr: Tensor,
    hr: Tensor | None,
    centroid: Tensor | None,
    alpha: Tensor | None,
    kind: str,
    factor: float,
    device_factor: Tensor | None,
    weights: Tensor | None,
) -> tuple[Tensor, Tensor]:
    # An operator's argument is a number or a tensor, not either.
    scale_factor = factor if device_factor is None else device_factor
    return functional.eco_l1_with_grad(sr, hr, centroid, alpha, kind=kind, scale_factor=scale_factor, weights=weights)


@wraps(functional.eco_l1_with_grad)
def eco_l1_with_grad(
    sr: Tensor,
    hr: Tensor | None,
    centroid: Tensor | None,
    alpha: Tensor | None,
    *,
    kind: str = "l1",
    scale_factor: float | Tensor = 1.0,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    if torch.compiler.is_compiling():
        with torch.no_grad():
            return _call_loss(sr, hr, centroid, alpha, kind, scale_factor, weights)
    return functional.eco_l1_with_grad(sr, hr, centroid, alpha, kind=kind, scale_factor=scale_factor, weights=weights)


def eco_l1(
    sr: Tensor,
    hr: Tensor | None,
    centroid: Tensor | None,
    alpha: Tensor | None,
    *,
    kind: str = "l1",
    scale_factor: float | Tensor = 1.0,
    weights: Tensor | None = None,
) -> Tensor:
    """`eco_l1_with_grad` as an autograd operation, differentiable once and with respect to `sr` only.

    The gradient is made in the forward pass and kept in the dtype of `sr`; a loss scaler for float16 belongs into
    `scale_factor`, where it acts before the gradient is rounded.

    Args:
        sr, hr, centroid, alpha, kind, scale_factor, weights: as in `eco_l1_with_grad`.

    Returns:
        The loss, float32 0-dim.

    Raises:
        TypeError, ValueError: as `eco_l1_with_grad`.
    """
    functional.check_loss(sr, hr, centroid, alpha, kind, scale_factor, weights)
    return _call_loss(sr, hr, centroid, alpha, kind, scale_factor, weights)[0]


def _call_loss(
    sr: Tensor,
    hr: Tensor | None,
    centroid: Tensor | None,
    alpha: Tensor | None,
    kind: str,
    scale_factor: float | Tensor,
    weights: Tensor | None,
) -> tuple[Tensor, Tensor]:
    factor, device_factor = (1.0, scale_factor) if isinstance(scale_factor, Tensor) else (float(scale_factor), None)
    return _eco_l1_with_grad(sr, hr, centroid, alpha, kind, factor, device_factor, weights)


@torch.library.register_fake("eco_kernels::gather_patches")
def _fake_gather_patches(
    store: Tensor,
    offsets: Tensor,
    widths: Tensor,
    index: Tensor,
    top: Tensor,
    left: Tensor,
    orientation: Tensor,
    patch: int,
    *,
    channels: int = 3,
) -> Tensor:
    return store.new_empty((len(index), patch, patch, channels))


@torch.library.register_fake("eco_kernels::gather_mix")
def _fake_gather_mix(
    store_a: Tensor,
    store_b: Tensor,
    offsets: Tensor,
    widths: Tensor,
    index: Tensor,
    top: Tensor,
    left: Tensor,
    orientation: Tensor,
    patch: int,
    alpha: Tensor,
    dtype: torch.dtype = torch.float32,
    *,
    channels: int = 3,
) -> Tensor:
    return store_a.new_empty((len(index), patch, patch, channels), dtype=dtype).permute(0, 3, 1, 2)


@torch.library.register_fake("eco_kernels::bicubic_downsample")
def _fake_bicubic_downsample(x: Tensor, scale: int, *, rounding: str = "matlab", border: str = "symmetric") -> Tensor:
    batch, channels, height, width = x.shape
    shape = (batch, channels, height // scale, width // scale)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


@torch.library.register_fake("eco_kernels::downsample_mix")
def _fake_downsample_mix(
    centroid: Tensor,
    lr: Tensor,
    alpha: Tensor,
    scale: int,
    top: Tensor | None = None,
    left: Tensor | None = None,
    patch: int | None = None,
    orientation: Tensor | None = None,
    *,
    rounding: str = "matlab",
    border: str = "symmetric",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    batch, channels, height, width = lr.shape
    height, width = (height, width) if patch is None else (patch, patch)
    shape = (batch, channels, height, width)
    return torch.empty(shape, dtype=dtype, device=lr.device, memory_format=torch.channels_last)


@torch.library.register_fake("eco_kernels::eco_l1_with_grad")
def _fake_eco_l1_with_grad(sr: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    loss = sr.new_empty((), dtype=torch.float32)
    return loss, torch.empty_like(sr, memory_format=memory_format(sr))


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])


def _eco_l1_backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    (grad,) = ctx.saved_tensors
    return grad * upstream, *[None] * 7


torch.library.register_autograd("eco_kernels::eco_l1_with_grad", _eco_l1_backward, setup_context=_keep_gradient)
