"""The update in plain PyTorch on flat tensors. Nothing waits for the device: on a GPU it is the kernels' rival."""

import math

import torch
from torch import Tensor

from eco_kernels.update import BLOCK, CLIP_EPS, GROWTH_STEPS, LAMB_MAX_NORM, Clip, Flat, Judgement, Segments


def judge_update(gradients: Tensor, loss: Tensor, state: Judgement, factor: float, clip: Clip) -> None:
    """See `eco_kernels.judge_update`."""
    if state.scale is not None:
        torch.reciprocal(state.scale, out=state.unscale)
        gradients = gradients * state.unscale
    torch.linalg.vector_norm(_block_norms(gradients), out=state.norm)
    if clip.norm:
        after = state.norm
        if clip.value:
            after = torch.linalg.vector_norm(_block_norms(gradients.clamp(-clip.value, clip.value)))
        torch.clamp(clip.norm / (after + CLIP_EPS), max=1.0, out=state.clip_factor)
        state.clip_factor.nan_to_num_(nan=1.0)  # 0 times NaN would leave NaN in the gaps
    else:
        state.clip_factor.fill_(1.0)
    finite = state.norm.isfinite()
    _decide(finite, loss, state, factor)
    if state.scale is not None and state.good is not None:
        state.good.add_(1).mul_(finite)
        grow = state.good == GROWTH_STEPS
        state.good.mul_(~grow)
        state.scale.mul_(torch.where(finite, 1.0 + grow.float(), 0.5))


def _decide(finite: Tensor, loss: Tensor, state: Judgement, factor: float) -> None:
    """Whether the update counts, and all that counts updates."""
    # A NaN compares as not larger, so the test is for what is accepted.
    accepted = finite & loss.isfinite()
    if math.isfinite(factor):
        accepted &= loss <= state.last * factor
    rejected = ~accepted
    state.skip.copy_(rejected)
    state.steps.add_(accepted)
    state.skipped.add_(rejected)
    state.in_a_row.add_(1).mul_(rejected)
    torch.where(accepted, loss, state.last, out=state.last)
    state.window.add_(torch.stack((torch.where(accepted, loss, 0.0), accepted.float())))


def adam_update(
    flat: Flat,
    state: Judgement,
    lr: float | Tensor,
    share: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool,
    clip: Clip,
) -> None:
    """See `eco_kernels.adam_update`: PyTorch's own fused form, which looks at `skip` as at a GradScaler's verdict."""
    _clip(flat.gradients, state, clip)
    update = torch._fused_adamw_ if decoupled else torch._fused_adam_
    update(
        [flat.weights],
        [flat.gradients],
        [flat.mean],
        [flat.square],
        [],
        [state.steps],
        lr=lr,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=weight_decay,
        eps=eps,
        amsgrad=False,
        maximize=False,
        found_inf=state.skip,
    )
    _copy(flat, state, share)


def lamb_update(
    flat: Flat,
    segments: Segments,
    state: Judgement,
    lr: float | Tensor,
    share: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    clip: Clip,
) -> None:
    """See `eco_kernels.lamb_update`."""
    skip, keep = state.skip.bool(), 1.0 - state.skip
    _clip(flat.gradients, state, clip)
    # 0 times NaN is NaN: what is to be ignored must go first. A sum with -0.0 changes no bit, not even that of -0.0.
    gradients = flat.gradients.masked_fill_(skip, -0.0)
    rise = (1.0 - betas[0]) * keep
    flat.mean.mul_(1.0 - rise).add_(gradients * rise)
    rise = (1.0 - betas[1]) * keep
    flat.square.mul_(1.0 - rise).add_(gradients.mul_(gradients).mul_(rise))

    update = flat.square.sqrt().add_(eps)
    torch.div(flat.mean, update, out=update)
    if weight_decay:
        update.add_(flat.weights, alpha=weight_decay)
    # The trust ratio of every tensor, and from there to its blocks.
    ours = _tensor_norms(flat.weights, segments).clamp_(max=LAMB_MAX_NORM)
    theirs = _tensor_norms(update, segments)
    ratio = torch.where((ours > 0) & (theirs > 0), ours / theirs, 1.0).mul_(-lr).masked_fill_(skip, 0.0)
    update.view(-1, BLOCK).mul_(ratio[segments.of_block].unsqueeze(1))
    flat.weights.add_(update)
    _copy(flat, state, share)


def _block_norms(buffer: Tensor) -> Tensor:
    """The norm of every block. The norm of these is faster than that of the buffer, more exact, and of fixed order."""
    return torch.linalg.vector_norm(buffer.view(-1, BLOCK), dim=1)


def _tensor_norms(buffer: Tensor, segments: Segments) -> Tensor:
    squares = _block_norms(buffer).square_()
    return torch.segment_reduce(squares, "sum", offsets=segments.first_block, unsafe=True).sqrt_()


def _clip(gradients: Tensor, state: Judgement, clip: Clip) -> None:
    """Undo the loss scale and clip, in place."""
    if state.scale is not None:
        gradients.mul_(state.unscale)
    if clip.value:
        gradients.clamp_(-clip.value, clip.value)
    if clip.norm:
        gradients.mul_(state.clip_factor)


def _copy(flat: Flat, state: Judgement, share: float | Tensor) -> None:
    """The average and the low copy of the new weights."""
    if flat.average is not None:
        flat.average.lerp_(flat.weights, share * (1.0 - state.skip))
    if flat.low is not None:
        flat.low.copy_(flat.weights)
