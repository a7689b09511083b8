"""The loss in plain PyTorch, some samples at a time."""

import torch
from torch import Tensor

from eco_kernels.images import memory_format, per_sample, unit_range
from eco_kernels.loss import CHARBONNIER_EPS

# Elements worked on at a time: a handful of fp32 buffers of this size stay in a core's L2 cache.
_CHUNK = 1 << 17


def eco_loss_with_grad(
    sr: Tensor,
    hr: Tensor | None,
    centroid: Tensor | None,
    alpha: Tensor | None,
    kind: str,
    scale_factor: float | Tensor,
    weights: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See `eco_kernels.eco_loss_with_grad`."""
    grad = torch.empty_like(sr, memory_format=memory_format(sr))
    samples = max(1, _CHUNK // sr[0].numel())
    partials = []
    for start in range(0, len(sr), samples):
        part = slice(start, start + samples)
        # The target of some samples, blended where it has two images.
        real, mu = (None if image is None else unit_range(image[part]) for image in (hr, centroid))
        target = mu if real is None else real
        if real is not None and mu is not None and alpha is not None:
            target = torch.lerp(mu, real, per_sample(alpha if alpha.ndim == 0 else alpha[part]))
        assert target is not None
        # Loss and slope of the scaled difference, and their share of the mean.
        pixel_loss, slope = _pixel_loss((sr[part].float() - target).mul_(scale_factor), kind)
        if weights is None:
            partials.append(pixel_loss.sum())
        else:
            partials.append(pixel_loss.sum(dim=(1, 2, 3)).mul_(weights[part]).sum())
            slope.mul_(weights[part].view(-1, 1, 1, 1))
        torch.mul(slope, scale_factor / sr.numel(), out=slope)
        grad[part] = slope
    # One partial sum per chunk, then their sum: the order is fixed, so the loss is the same in every run.
    return torch.stack(partials).sum() / sr.numel(), grad


def _pixel_loss(difference: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """The loss of every pixel and its derivative; `difference` may be overwritten."""
    if kind == "l1":
        return difference.abs(), difference.sign_()
    if kind == "l2":
        return difference.square(), difference.mul_(2)
    loss = difference.square().add_(CHARBONNIER_EPS**2).sqrt_()
    return loss, difference.div_(loss)
