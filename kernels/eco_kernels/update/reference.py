"""The truth about the update: float64, tensor by tensor. Gives new tensors and leaves its arguments as they are."""

import math
from itertools import pairwise

import torch
from torch import Tensor

from eco_kernels.update import (
    BLOCK,
    CLIP_EPS,
    GROWTH_STEPS,
    LAMB_MAX_NORM,
    NO_CLIP,
    Clip,
    Flat,
    Judgement,
    Segments,
)


def judge_update(
    gradients: Tensor, loss: Tensor, state: Judgement, *, factor: float = math.inf, clip: Clip = NO_CLIP
) -> Judgement:
    """The state afterwards; what is float32 there is float64."""
    unscale = 1.0 if state.scale is None else 1.0 / state.scale.item()
    gradients = gradients.double() * unscale
    norm = gradients.norm().item()
    after = gradients.clamp(-clip.value, clip.value).norm().item() if clip.value else norm
    last, value = state.last.item(), loss.item()
    accepted = math.isfinite(norm) and math.isfinite(value) and (math.isinf(factor) or value <= last * factor)

    good = scale = None
    if state.good is not None and state.scale is not None:
        good = state.good.item() + 1 if math.isfinite(norm) else 0
        scale = state.scale.item() * (0.5 if not math.isfinite(norm) else 2.0 if good == GROWTH_STEPS else 1.0)
        good = 0 if good == GROWTH_STEPS else good
    return Judgement(
        last=_number(value if accepted else last),
        skipped=state.skipped + (not accepted),
        in_a_row=torch.zeros_like(state.in_a_row) if accepted else state.in_a_row + 1,
        window=state.window.double() + _number([value, 1.0] if accepted else [0.0, 0.0]),
        steps=state.steps.double() + accepted,
        norm=_number(norm),
        clip_factor=_number(min(1.0, clip.norm / (after + CLIP_EPS)) if clip.norm else 1.0),
        skip=_number(float(not accepted)),
        unscale=_number(unscale),
        scale=None if scale is None else _number(scale),
        good=None if good is None else torch.tensor(good),
    )


def adam_update(
    flat: Flat,
    state: Judgement,
    *,
    lr: float | Tensor,
    share: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    clip: Clip = NO_CLIP,
) -> Flat:
    """The buffers afterwards, all float64."""
    if state.skip:
        return flat.map(Tensor.double)
    weights, rate, steps = flat.weights.double(), float(lr), state.steps.item()
    gradients = _clipped(flat.gradients, state, clip)
    if decoupled:
        weights = weights * (1 - rate * weight_decay)
    else:
        gradients = gradients + weight_decay * weights
    mean = betas[0] * flat.mean.double() + (1 - betas[0]) * gradients
    square = betas[1] * flat.square.double() + (1 - betas[1]) * gradients**2
    root = (square / (1 - betas[1] ** steps)).sqrt()
    weights = weights - rate * mean / (1 - betas[0] ** steps) / (root + eps)
    return _finished(flat, weights, gradients, mean, square, share)


def lamb_update(
    flat: Flat,
    segments: Segments,
    state: Judgement,
    *,
    lr: float | Tensor,
    share: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.99),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    clip: Clip = NO_CLIP,
) -> Flat:
    """The buffers afterwards, all float64."""
    if state.skip:
        return flat.map(Tensor.double)
    weights, gradients = flat.weights.double().clone(), _clipped(flat.gradients, state, clip)
    mean = betas[0] * flat.mean.double() + (1 - betas[0]) * gradients
    square = betas[1] * flat.square.double() + (1 - betas[1]) * gradients**2
    first = (BLOCK * segments.first_block).tolist()
    for start, stop in pairwise(first):
        here = slice(start, stop)
        update = mean[here] / (square[here].sqrt() + eps) + weight_decay * weights[here]
        ours, theirs = weights[here].norm().clamp(max=LAMB_MAX_NORM), update.norm()
        ratio = ours / theirs if ours > 0 and theirs > 0 else 1.0
        weights[here] -= float(lr) * ratio * update
    return _finished(flat, weights, gradients, mean, square, share)


def _clipped(gradients: Tensor, state: Judgement, clip: Clip) -> Tensor:
    result = gradients.double() * state.unscale.double()
    if clip.value:
        result = result.clamp(-clip.value, clip.value)
    return result * state.clip_factor.double()


def _finished(
    flat: Flat, weights: Tensor, gradients: Tensor, mean: Tensor, square: Tensor, share: float | Tensor
) -> Flat:
    part = float(share)
    average = None if flat.average is None else flat.average.double() * (1 - part) + weights * part
    return Flat(weights, gradients, mean, square, average, None if flat.low is None else weights)


def _number(value: float | list[float]) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
