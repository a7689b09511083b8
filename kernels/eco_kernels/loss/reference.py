"""The truth about the loss: float64, differentiable by PyTorch's own autograd, and its derivative by hand."""

from torch import Tensor

from eco_kernels.gather.reference import blend, unit_range
from eco_kernels.loss import CHARBONNIER_EPS


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
    """The loss in float64, differentiable by PyTorch's own autograd."""
    difference = (sr.double() - _target(hr, centroid, alpha)) * scale_factor
    if kind == "l1":
        loss = difference.abs()
    elif kind == "l2":
        loss = difference**2
    else:
        loss = (difference**2 + CHARBONNIER_EPS**2).sqrt()
    return (loss if weights is None else loss * weights.double().view(-1, 1, 1, 1)).mean()


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
    """The loss and its derivative by hand, both float64."""
    arguments = (hr, centroid, alpha)
    loss = eco_loss(sr.detach(), *arguments, kind=kind, scale_factor=scale_factor, weights=weights)
    difference = (sr.detach().double() - _target(*arguments)) * scale_factor
    if kind == "l1":
        slope = difference.sign()
    elif kind == "l2":
        slope = 2 * difference
    else:
        slope = difference / (difference**2 + CHARBONNIER_EPS**2).sqrt()
    if weights is not None:
        slope = slope * weights.double().view(-1, 1, 1, 1)
    return loss, slope * scale_factor / sr.numel()


def _target(hr: Tensor | None, centroid: Tensor | None, alpha: Tensor | None) -> Tensor:
    if hr is not None and centroid is not None and alpha is not None:
        return blend(hr, centroid, alpha)
    only = hr if hr is not None else centroid
    if only is None:
        raise ValueError("hr and centroid are both None; the loss needs a target")
    return unit_range(only)
