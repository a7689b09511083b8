"""`eco_loss` and `eco_loss_with_grad`: the pixel loss against the blended target, and its gradient, in one pass."""

from typing import Any

import torch
from torch import Tensor

from eco_kernels.checks import (
    FLOATS,
    check_choice,
    check_device,
    check_images,
    check_per_sample,
    check_shape,
    check_tensor,
)
from eco_kernels.dispatch import implementation
from eco_kernels.images import memory_format

KINDS = ("l1", "l2", "charbonnier")
"""A new one has a branch in `cpu`, `kernel` and `reference`, and its name in the trainer's settings."""

CHARBONNIER_EPS = 1e-3
"""Charbonnier's epsilon, on the scaled difference."""


def eco_loss_with_grad(
    sr: Tensor,
    hr: Tensor | None,
    centroid: Tensor | None,
    alpha: Tensor | None,
    *,
    kind: str = "l1",
    scale_factor: float | Tensor = 1.0,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The pixel loss against the blended target, and its gradient (Lee & Heo 2024, Eq. 14), without an autograd node.

    `mean of weights_b loss(scale_factor (sr - target))` over all elements, with `target = alpha hr + (1 - alpha)
    centroid` never written to memory. Arithmetic is fp32; sums are taken in a fixed order.

    Args:
        sr: `(B, C, H, W)` float32, float16 or bfloat16: the student's output.
        hr, centroid: `(B, C, H, W)` uint8 (taken over 255) or float. `centroid=None`: the target is `hr`;
            `hr=None`: it is the centroid. `alpha` is not read then, and may be None.
        alpha: float32 0-dim or `(B,)` on the device of `sr`: the weight of `hr`.
        kind: "l1" |d| (gradient 0 where d is 0 or NaN), "l2" d^2, or "charbonnier" sqrt(d^2 + 1e-6), d the scaled
            difference.
        scale_factor: number or float32 0-dim tensor on the device of `sr` that multiplies the difference: 255 for
            the paper's loss on the 0-255 scale. For "l1" it multiplies the loss as well.
        weights: float32 `(B,)` on the device of `sr`; None means 1.

    Returns:
        `(loss, grad)`: the loss as float32 0-dim, and d loss / d sr with the shape, dtype and layout of `sr`.

    Raises:
        TypeError: a dtype differs from the above.
        ValueError: a shape, device or kind differs, or both `hr` and `centroid` are None.
    """
    if torch.compiler.is_compiling():
        with torch.no_grad():
            return _operator(sr, hr, centroid, alpha, kind, _as_tensor(scale_factor, sr.device), weights)
    return _compute(sr, hr, centroid, alpha, kind, scale_factor, weights)


def eco_loss(
    sr: Tensor,
    hr: Tensor | None,
    centroid: Tensor | None,
    alpha: Tensor | None,
    *,
    kind: str = "l1",
    scale_factor: float | Tensor = 1.0,
    weights: Tensor | None = None,
) -> Tensor:
    """`eco_loss_with_grad` as an autograd operation, differentiable once and with respect to `sr` only.

    The gradient is made in the forward pass and kept in the dtype of `sr`; a loss scaler for float16 belongs into
    `scale_factor`, where it acts before the gradient is rounded.

    Args:
        sr, hr, centroid, alpha, kind, scale_factor, weights: as in `eco_loss_with_grad`.

    Returns:
        The loss, float32 0-dim.

    Raises:
        TypeError, ValueError: as `eco_loss_with_grad`.
    """
    _check(sr, hr, centroid, alpha, kind, scale_factor, weights)  # before PyTorch looks where the arguments are
    return _operator(sr, hr, centroid, alpha, kind, _as_tensor(scale_factor, sr.device), weights)[0]


def _as_tensor(scale_factor: float | Tensor, device: torch.device) -> Tensor:
    """The factor as an operator takes it."""
    if isinstance(scale_factor, Tensor):
        return scale_factor
    return torch.full((), float(scale_factor), device=device)


@torch.no_grad()
def _compute(
    sr: Tensor,
    hr: Tensor | None,
    centroid: Tensor | None,
    alpha: Tensor | None,
    kind: str,
    scale_factor: float | Tensor,
    weights: Tensor | None,
) -> tuple[Tensor, Tensor]:
    _check(sr, hr, centroid, alpha, kind, scale_factor, weights)
    module = implementation(__name__, sr.device)
    loss, grad = module.eco_loss_with_grad(sr, hr, centroid, alpha, kind, scale_factor, weights)
    return loss, grad


@torch.library.custom_op("eco_kernels::eco_loss_with_grad", mutates_args=())
def _operator(
    sr: Tensor,
    hr: Tensor | None,
    centroid: Tensor | None,
    alpha: Tensor | None,
    kind: str,
    scale_factor: Tensor,
    weights: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return _compute(sr, hr, centroid, alpha, kind, scale_factor, weights)


@_operator.register_fake
def _empty(sr: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return sr.new_empty((), dtype=torch.float32), torch.empty_like(sr, memory_format=memory_format(sr))


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    (grad,) = ctx.saved_tensors
    return grad * upstream, *[None] * 6


_operator.register_autograd(_backward, setup_context=_keep_gradient)


def _check(
    sr: Tensor,
    hr: Tensor | None,
    centroid: Tensor | None,
    alpha: Tensor | None,
    kind: str,
    scale_factor: float | Tensor,
    weights: Tensor | None,
) -> None:
    check_tensor("sr", sr, 4, FLOATS)
    check_choice("kind", kind, KINDS)
    for name, image in (("hr", hr), ("centroid", centroid)):
        if image is not None:
            check_images(name, image)
            check_shape(name, image, sr.shape)
            check_device(name, image, sr.device)
    if hr is None and centroid is None:
        raise ValueError("hr and centroid are both None; the loss needs a target")
    if hr is not None and centroid is not None:
        check_per_sample("alpha", alpha, len(sr), sr.device, scalar=True)
    if isinstance(scale_factor, Tensor):
        check_tensor("scale_factor", scale_factor, 0, (torch.float32,))
        check_device("scale_factor", scale_factor, sr.device)
    elif isinstance(scale_factor, bool) or not isinstance(scale_factor, (int, float)):
        name = type(scale_factor).__name__
        raise TypeError(f"scale_factor is a {name}; it must be a number or a 0-dim float32 tensor")
    if weights is not None:
        check_per_sample("weights", weights, len(sr), sr.device, scalar=False)
