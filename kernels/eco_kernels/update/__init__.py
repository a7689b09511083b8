"""`judge_update`, then `adam_update` or `lamb_update`: what is done to a network's weights once gradients are there.

All parameters lie in one flat buffer, so that an update is a few launches however many tensors there are, and nothing
is read by the host: the judgement, a handful of numbers on the device, tells the update what to do.
"""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from eco_kernels.checks import check_tensor
from eco_kernels.dispatch import implementation

BLOCK = 1024
"""Elements; every tensor begins at a multiple of it, and zeros fill the gaps. A program updates one block."""

GROWTH_STEPS = 2000
"""Good updates in a row after which the loss scale of fp16 is doubled."""

LAMB_MAX_NORM = 10.0
"""What a tensor's norm is clamped to in LAMB's trust ratio."""

CLIP_EPS = 1e-6
"""Added to the norm that gradients are divided by, as PyTorch does."""


def first_blocks(sizes: Sequence[int]) -> list[int]:
    """Where tensors of so many elements begin, in blocks; the last entry, one more than tensors, is the buffers' end.

    Raises:
        ValueError: There is no tensor, or one is empty.
    """
    if not sizes or min(sizes) < 1:
        raise ValueError(f"the sizes are {list(sizes)}; each tensor must have elements")
    return [0, *accumulate(-(-size // BLOCK) for size in sizes)]


class Segments(NamedTuple):
    """Which blocks a tensor has, on the device of the buffers."""

    of_block: Tensor
    """int32 `(blocks,)`: the tensor that a block belongs to."""
    first_block: Tensor
    """int32 `(tensors + 1,)`: `first_blocks`."""

    @classmethod
    def of(cls, sizes: Sequence[int], device: torch.device | str = "cpu") -> "Segments":
        """The blocks of tensors of so many elements.

        Raises:
            ValueError: There is no tensor, or one is empty.
        """
        first = torch.tensor(first_blocks(sizes), dtype=torch.int32)
        of_block = torch.arange(len(sizes), dtype=torch.int32).repeat_interleave(first.diff())
        return cls(of_block.to(device), first.to(device))


class Flat(NamedTuple):
    """A network in training as flat buffers of one layout and length, a multiple of `BLOCK`; gaps hold zeros.

    float32, but for `low`.
    """

    weights: Tensor
    gradients: Tensor
    mean: Tensor
    """First moment."""
    square: Tensor
    """Second moment."""
    average: Tensor | None = None
    """Exponential moving average of the weights."""
    low: Tensor | None = None
    """bfloat16 or float16: the weights rounded, for a forward pass to read."""

    def map(self, function: Callable[[Tensor], Tensor]) -> "Flat":
        """What `function` makes of every buffer that there is."""
        weights, gradients, mean, square = (function(each) for each in self[:4])
        average, low = (None if each is None else function(each) for each in self[4:])
        return Flat(weights, gradients, mean, square, average, low)


class Judgement(NamedTuple):
    """What is known of a network's updates, and of the last one; 0-dim tensors on the device, changed in place.

    float32, but for the counts.
    """

    last: Tensor
    """Loss of the last update that counted; infinite before the first."""
    skipped: Tensor
    """int64: updates that did not count."""
    in_a_row: Tensor
    """int64: of them, those since the last one that counted."""
    window: Tensor
    """`(2,)`: sum of the losses that counted, and their number. For a log, which sets it to zero."""
    steps: Tensor
    """Updates that counted: the exponent of Adam's bias correction."""
    norm: Tensor
    """Out: norm of all gradients before they are clipped."""
    clip_factor: Tensor
    """Out: what brings them to the wanted norm, once they are clipped by value. Of no meaning where `skip` is 1."""
    skip: Tensor
    """Out: 1.0 if this update does not count, else 0.0."""
    unscale: Tensor
    """Out: one over the loss scale that these gradients have; 1.0 where there is none."""
    scale: Tensor | None = None
    """Loss scale of fp16, for the next update: halved when a gradient was not finite, doubled after `GROWTH_STEPS`."""
    good: Tensor | None = None
    """int64: updates in a row with finite gradients, since the last doubling."""

    @classmethod
    def fresh(
        cls, device: torch.device | str = "cpu", *, last: float = math.inf, scale: float | None = None
    ) -> "Judgement":
        """The state before the first update.

        Args:
            device: Of the buffers.
            last: Stands for the loss before the first update; infinite for none.
            scale: The first loss scale of fp16; None for other precisions.
        """

        def number(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.full((), value, dtype=dtype, device=device)

        skipped, in_a_row = number(0, torch.int64), number(0, torch.int64)
        window, steps = torch.zeros(2, device=device), number(0.0)
        outs = (number(0.0), number(1.0), number(0.0), number(1.0))
        fp16 = () if scale is None else (number(scale), number(0, torch.int64))
        return cls(number(last), skipped, in_a_row, window, steps, *outs, *fp16)


class Clip(NamedTuple):
    """How gradients are clipped, 0 for not at all: first every value, then the norm of all."""

    value: float = 0.0
    norm: float = 0.0


NO_CLIP = Clip()


@torch.no_grad()
def judge_update(
    gradients: Tensor, loss: Tensor, state: Judgement, *, factor: float = math.inf, clip: Clip = NO_CLIP
) -> None:
    """Judge gradients: their norm, the factor that clips it, whether the update counts. Changes `state` in place.

    An update counts if loss and norm are finite and the loss is at most `factor` times the last one that counted. Sums
    are fp32 in a fixed order.

    Args:
        gradients: float32 `(N,)`, N a multiple of `BLOCK`; times the loss scale where `state` has one. Stays as it is.
        loss: float32 0-dim on the same device, without the loss scale.
        state: On the same device.
        factor: Infinite for no comparison with the last loss.
        clip: What the update will be called with.

    Raises:
        TypeError: a dtype differs from the above.
        ValueError: a shape, layout or device differs, or a setting is negative.
    """
    _check_buffer("gradients", gradients)
    _check_state(state, gradients.device)
    _check_scalar("loss", loss, gradients.device)
    if not factor >= 0:
        raise ValueError(f"factor is {factor!r}; it must not be negative")
    _check_clip(clip)
    implementation(__name__, gradients.device).judge_update(gradients, loss, state, float(factor), clip)


@torch.no_grad()
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
) -> None:
    """Adam or AdamW as `torch.optim` has them, with the average and the low copy of the weights, in place.

    With `state.skip` all but the gradients keep their bits, whatever the gradients hold.

    Args:
        flat: The buffers. Gradients may be overwritten: plain PyTorch clips them in place.
        state: After `judge_update` of these gradients; only read.
        lr: Number, or float32 0-dim tensor on the device.
        share: Weight of the new weights in their average, as `lr`: `average (1 - share) + weights share`.
        betas: Of the moments.
        eps: Added to the root of the second moment.
        weight_decay: Added to the gradient; with `decoupled`, as in AdamW, the weights shrink by `lr weight_decay`.
        decoupled: AdamW.
        clip: What `judge_update` was called with.

    Raises:
        TypeError: a dtype differs from the above.
        ValueError: a shape, layout or device differs, or a setting is out of range.
    """
    _check_update(flat, state, lr, share, betas, eps, clip)
    module = implementation(__name__, flat.weights.device)
    module.adam_update(flat, state, lr, share, betas, eps, weight_decay, decoupled, clip)


@torch.no_grad()
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
) -> None:
    """LAMB (You et al. 2020) in the form of the ECO recipes, with the average and the low copy, in place.

    For every tensor w with gradient g, without bias correction:

        m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,  u = m / (sqrt(v) + eps) + weight_decay w
        w = w - lr r u,  r = min(|w|, 10) / |u|, and 1 where either norm is 0

    Args:
        segments: Which blocks of the buffers a tensor has.
        flat, state, lr, share, betas, eps, weight_decay, clip: As in `adam_update`.

    Raises:
        TypeError: a dtype differs from the above.
        ValueError: a shape, layout or device differs, or a setting is out of range.
    """
    _check_update(flat, state, lr, share, betas, eps, clip)
    blocks, device = flat.weights.numel() // BLOCK, flat.weights.device
    for name, tensor in zip(segments._fields, segments, strict=True):
        check_tensor(name, tensor, 1, (torch.int32,))
        _check_place(name, tensor, device)
    if len(segments.of_block) != blocks:
        raise ValueError(f"of_block has {len(segments.of_block)} entries; the buffers have {blocks} blocks")
    module = implementation(__name__, device)
    module.lamb_update(flat, segments, state, lr, share, betas, eps, weight_decay, clip)


def _check_update(
    flat: Flat,
    state: Judgement,
    lr: float | Tensor,
    share: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    clip: Clip,
) -> None:
    weights = flat.weights
    _check_buffer("weights", weights)
    for name, tensor in zip(flat._fields[1:], flat[1:], strict=True):
        if tensor is None and name in ("average", "low"):
            continue
        dtypes = (torch.bfloat16, torch.float16) if name == "low" else (torch.float32,)
        buffer = check_tensor(name, tensor, 1, dtypes)
        if len(buffer) != len(weights):
            raise ValueError(f"{name} has {len(buffer)} elements; the weights have {len(weights)}")
        _check_place(name, buffer, weights.device)
    _check_state(state, weights.device)
    for name, value in (("lr", lr), ("share", share)):
        if isinstance(value, Tensor):
            _check_scalar(name, value, weights.device)
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} is a {type(value).__name__}; it must be a number or a 0-dim float32 tensor")
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas are {betas}; they must lie in 0 .. 1, without 1")
    if not eps > 0:
        raise ValueError(f"eps is {eps!r}; it must be positive, or the gaps would become NaN")
    _check_clip(clip)


def _check_buffer(name: str, value: Tensor) -> None:
    check_tensor(name, value, 1, (torch.float32,))
    if len(value) % BLOCK:
        raise ValueError(f"{name} has {len(value)} elements; it must be a multiple of {BLOCK}")
    _check_place(name, value, value.device)


def _check_place(name: str, value: Tensor, device: torch.device) -> None:
    if value.device != device:
        raise ValueError(f"{name} is on {value.device}; it must be on {device} like the other buffers")
    if not value.is_contiguous():
        raise ValueError(f"{name} has stride {value.stride()}; it must be contiguous")


def _check_scalar(name: str, value: Tensor, device: torch.device) -> None:
    check_tensor(name, value, 0, (torch.float32,))
    _check_place(name, value, device)


def _check_state(state: Judgement, device: torch.device) -> None:
    for name, tensor in zip(state._fields, state, strict=True):
        if tensor is None and name in ("scale", "good"):
            continue
        counts = name in ("skipped", "in_a_row", "good")
        dtype = torch.int64 if counts else torch.float32
        _check_place(name, check_tensor(name, tensor, 1 if name == "window" else 0, (dtype,)), device)
    if (state.scale is None) != (state.good is None):
        raise ValueError("one of scale and good is None; a loss scale needs both")


def _check_clip(clip: Clip) -> None:
    if not (clip.value >= 0 and clip.norm >= 0):
        raise ValueError(f"{clip} is negative; 0 means not to clip")
