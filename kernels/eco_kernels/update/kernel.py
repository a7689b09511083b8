"""The update as Triton kernels, one pass over the buffers for Adam and two for LAMB.

Sums are partial sums of programs, added by one program in a fixed order: no atomics, no autotuning, the same bits in
every run. Where the update does not count nothing is stored, so that no bit changes whatever was computed. The scalars
of a step are read from the device, so a CUDA graph can hold the launches.

Bytes of a parameter, with the average (8) and a low copy (2) of the weights:

    judge           4 read
    Adam            20 read, 18 written
    LAMB, moments   16 read, 8 written
    LAMB, weights   16 read, 10 written

The partial sums are 8 bytes for 4096 elements (judge) and for 1024 (LAMB), written and read once.
"""

# mypy: disable-error-code="no-untyped-def"

import math
from collections.abc import Iterator
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from eco_kernels import update
from eco_kernels.triton_common import (
    OPTIONS,
    PARAMETERS,
    POINTERS,
    Specialisation,
    launches_on,
    short_name,
    size_of,
    specialisation,
)
from eco_kernels.update import Clip, Flat, Judgement, Segments

BLOCK = tl.constexpr(update.BLOCK)
CHUNK = tl.constexpr(4096)
"""Elements per program where norms are all that is wanted: 32 per thread, eight loads in flight."""
JUDGE_WIDTH, RATIO_WIDTH = tl.constexpr(4096), tl.constexpr(1024)
"""Partial sums that are added at a time, of a network and of a tensor."""
NUM_WARPS, JUDGE_WARPS = 4, 8

GROWTH_STEPS = tl.constexpr(update.GROWTH_STEPS)
LAMB_MAX_NORM = tl.constexpr(update.LAMB_MAX_NORM)
CLIP_EPS = tl.constexpr(update.CLIP_EPS)

# Terms that give 1 - exp(x) for x in -1/2 .. 0 to fp32's precision: the next one is below 2e-9 of it.
_TERMS = tl.constexpr(9)

# Scalars lie where the caller put them, one beside the other perhaps: their alignment makes no other kernel.
_SCALARS = ("skip", "steps", "unscale", "clip_factor", "lr", "share")
_STATE = ("loss", "last", "skipped", "in_a_row", "window", "norm", "scale", "good", *_SCALARS[:4])


@triton.jit
def is_finite(x):
    """Whether a number is neither a NaN nor infinite."""
    return tl.abs(x) < float("inf")


@triton.jit
def bias_correction(steps, log_beta):
    """`1 - beta^steps` with a relative error below 1e-6, near 0 too, where the difference itself would lose digits."""
    x = steps * log_beta
    series = 1.0
    for i in tl.static_range(_TERMS - 1):
        series = 1.0 + series * (x * (1.0 / (_TERMS - i)))
    return tl.where(x > -0.5, -x * series, 1.0 - tl.exp(x))


@triton.jit
def clipped(gradient, unscale, bound, clip_factor):
    """A gradient without the loss scale, clipped by value and then by norm."""
    return tl.minimum(tl.maximum(gradient * unscale, -bound), bound) * clip_factor


@triton.jit
def lamb_direction(weight, mean, square, eps, weight_decay):
    """LAMB's update before the trust ratio; both passes compute it from the same numbers."""
    return tl.fma(weight, weight_decay, tl.div_rn(mean, tl.sqrt_rn(square) + eps))


@triton.jit
def averaged(before, weight, share):
    """The average after an update. In this form, and not as a difference, a share of 1 copies exactly."""
    return before * (1.0 - share) + weight * share


@triton.jit(do_not_specialize_on_alignment=_STATE)
def _norms_kernel(gradients, scale, partials, elements, bound):
    """Two sums of squares of 4096 gradients: as they are, and clipped by value.

    Args:
        gradients: fp32 (elements,).
        scale: fp32 0-dim, the loss scale that they have; None means 1.
        partials: fp32 (programs, 2).
        elements: a multiple of 1024.
        bound: of the absolute values.
    """
    place = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    gradient = tl.load(gradients + place, mask=place < elements, other=0.0)
    if scale is not None:
        gradient *= tl.div_rn(1.0, tl.load(scale))
    small = clipped(gradient, 1.0, bound, 1.0)
    result = partials + 2 * tl.program_id(0)
    tl.store(result, tl.sum(gradient * gradient))
    tl.store(result + 1, tl.sum(small * small))


@triton.jit(do_not_specialize=("programs",), do_not_specialize_on_alignment=_STATE)
def _judge_kernel(
    partials,
    loss,
    last,
    skipped,
    in_a_row,
    window,
    steps,
    norm,
    clip_factor,
    skip,
    unscale,
    scale,
    good,
    programs,
    factor,
    max_norm,
):
    """Adds the partial sums and decides. One program: only its first thread stores scalars, after its own loads.

    Args:
        partials: fp32 (programs, 2), of `_norms_kernel`.
        loss: fp32 0-dim.
        last, skipped, in_a_row, window, steps, norm, clip_factor, skip, unscale, scale, good: see `Judgement`.
        factor: an update counts whose loss is at most so many times the last one; infinite for no comparison.
        max_norm: 0 for no clipping by norm.
    """
    # The norms, from the partial sums in their order.
    lane = tl.arange(0, JUDGE_WIDTH)
    raw = tl.zeros((JUDGE_WIDTH,), tl.float32)
    small = tl.zeros((JUDGE_WIDTH,), tl.float32)
    for start in range(0, programs, JUDGE_WIDTH):
        row = partials + 2 * (start + lane)
        raw += tl.load(row, mask=start + lane < programs, other=0.0)
        small += tl.load(row + 1, mask=start + lane < programs, other=0.0)
    gradient_norm = tl.sqrt_rn(tl.sum(raw))
    ratio = tl.div_rn(max_norm, tl.sqrt_rn(tl.sum(small)) + CLIP_EPS)
    tl.store(norm, gradient_norm)
    tl.store(clip_factor, tl.where((max_norm > 0.0) & (ratio < 1.0), ratio, 1.0))

    # Whether the update counts. A NaN compares as not larger, so the test is for what is accepted.
    value = tl.load(loss)
    before = tl.load(last)
    finite = is_finite(gradient_norm)
    counts = finite & is_finite(value) & ((factor == float("inf")) | (value <= before * factor))
    rejected = 1 - counts.to(tl.int32)
    tl.store(skip, rejected.to(tl.float32))
    tl.store(last, tl.where(counts, value, before))
    tl.store(skipped, tl.load(skipped) + rejected)
    tl.store(in_a_row, (tl.load(in_a_row) + 1) * rejected)
    tl.store(steps, tl.load(steps) + counts.to(tl.float32))
    tl.store(window, tl.load(window) + tl.where(counts, value, 0.0))
    tl.store(window + 1, tl.load(window + 1) + counts.to(tl.float32))

    # The loss scale: what these gradients have, and what the next ones will have.
    if scale is not None:
        used = tl.load(scale)
        tl.store(unscale, tl.div_rn(1.0, used))
        run = (tl.load(good) + 1) * finite.to(tl.int32)
        grow = run == GROWTH_STEPS
        tl.store(good, tl.where(grow, 0, run))
        tl.store(scale, used * tl.where(finite, tl.where(grow, 2.0, 1.0), 0.5))


@triton.jit(do_not_specialize_on_alignment=_SCALARS)
def _adam_kernel(
    weights,
    gradients,
    mean,
    square,
    average,
    low,
    skip,
    steps,
    unscale,
    clip_factor,
    lr,
    share,
    bound,
    rise1,
    beta2,
    rise2,
    log_beta1,
    log_beta2,
    eps,
    weight_decay,
    shrink,
    ON_DEVICE: tl.constexpr,
):
    """Adam of a block. All is loaded before anything is stored: no load can be moved up past a store.

    Args:
        weights, gradients, mean, square: fp32, see `Flat`.
        average: fp32, or None.
        low: bf16 or fp16, or None.
        skip, steps, unscale, clip_factor: fp32 0-dim, see `Judgement`.
        lr, share: fp32 0-dim where ON_DEVICE, else numbers.
        bound: of the gradients' absolute values.
        rise1, beta2, rise2: shares of the moments; rise is 1 - beta.
        log_beta1, log_beta2: natural logarithms.
        weight_decay: times the weights, in the gradients.
        shrink: times the learning rate, taken from the weights first.
    """
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    weight = tl.load(weights + place)
    gradient = tl.load(gradients + place)
    first = tl.load(mean + place)
    second = tl.load(square + place)
    if average is not None:
        before = tl.load(average + place)
    counts = tl.load(skip) == 0.0
    rate = tl.load(lr) if ON_DEVICE else lr
    part = tl.load(share) if ON_DEVICE else share
    count = tl.load(steps)
    step_size = tl.div_rn(rate, bias_correction(count, log_beta1))
    root = tl.sqrt_rn(bias_correction(count, log_beta2))

    # Weight decay of either kind; that of the other kind is 0 and changes nothing.
    gradient = clipped(gradient, tl.load(unscale), bound, tl.load(clip_factor)) + weight * weight_decay
    weight *= 1.0 - rate * shrink

    # The moments, and the weights.
    first = tl.fma(gradient - first, rise1, first)
    second = second * beta2 + rise2 * gradient * gradient
    weight += tl.div_rn(-step_size * first, tl.div_rn(tl.sqrt_rn(second), root) + eps)
    tl.store(mean + place, first, mask=counts)
    tl.store(square + place, second, mask=counts)
    tl.store(weights + place, weight, mask=counts)
    if average is not None:
        tl.store(average + place, averaged(before, weight, part), mask=counts)
    if low is not None:
        tl.store(low + place, weight.to(low.dtype.element_ty), mask=counts)


@triton.jit(do_not_specialize_on_alignment=_SCALARS)
def _lamb_moments_kernel(
    weights,
    gradients,
    mean,
    square,
    partials,
    skip,
    unscale,
    clip_factor,
    bound,
    rise1,
    rise2,
    eps,
    weight_decay,
):
    """LAMB's moments of a block, and the sums of squares of its weights and of its update.

    Args:
        weights, gradients, mean, square: fp32, see `Flat`.
        partials: fp32 (blocks, 2).
        skip, unscale, clip_factor: fp32 0-dim, see `Judgement`.
        bound: of the gradients' absolute values.
        rise1, rise2: 1 - beta of the moments.
    """
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    weight = tl.load(weights + place)
    gradient = tl.load(gradients + place)
    first = tl.load(mean + place)
    second = tl.load(square + place)
    counts = tl.load(skip) == 0.0
    gradient = clipped(gradient, tl.load(unscale), bound, tl.load(clip_factor))
    first = first * (1.0 - rise1) + gradient * rise1
    second = second * (1.0 - rise2) + gradient * gradient * rise2
    tl.store(mean + place, first, mask=counts)
    tl.store(square + place, second, mask=counts)
    direction = lamb_direction(weight, first, second, eps, weight_decay)
    result = partials + 2 * tl.program_id(0)
    tl.store(result, tl.sum(weight * weight))
    tl.store(result + 1, tl.sum(direction * direction))


@triton.jit
def _lamb_ratios_kernel(partials, first_block, ratios):
    """The trust ratio of a tensor, from the partial sums of its blocks in their order.

    Args:
        partials: fp32 (blocks, 2), of `_lamb_moments_kernel`.
        first_block: int32 (tensors + 1,).
        ratios: fp32 (tensors,).
    """
    start = tl.load(first_block + tl.program_id(0))
    stop = tl.load(first_block + tl.program_id(0) + 1)
    lane = tl.arange(0, RATIO_WIDTH)
    weights = tl.zeros((RATIO_WIDTH,), tl.float32)
    directions = tl.zeros((RATIO_WIDTH,), tl.float32)
    for block in range(start, stop, RATIO_WIDTH):
        row = partials + 2 * (block + lane)
        weights += tl.load(row, mask=block + lane < stop, other=0.0)
        directions += tl.load(row + 1, mask=block + lane < stop, other=0.0)
    ours = tl.minimum(tl.sqrt_rn(tl.sum(weights)), LAMB_MAX_NORM)
    theirs = tl.sqrt_rn(tl.sum(directions))
    ratio = tl.where((ours > 0.0) & (theirs > 0.0), tl.div_rn(ours, theirs), 1.0)
    tl.store(ratios + tl.program_id(0), ratio)


@triton.jit(do_not_specialize_on_alignment=_SCALARS)
def _lamb_kernel(
    weights,
    mean,
    square,
    average,
    low,
    of_block,
    ratios,
    skip,
    lr,
    share,
    eps,
    weight_decay,
    ON_DEVICE: tl.constexpr,
):
    """LAMB's new weights of a block, from the new moments.

    Args:
        weights, mean, square: fp32, see `Flat`.
        average: fp32, or None.
        low: bf16 or fp16, or None.
        of_block: int32 (blocks,), the tensor of a block.
        ratios: fp32 (tensors,), trust ratios.
        skip: fp32 0-dim, see `Judgement`.
        lr, share: fp32 0-dim where ON_DEVICE, else numbers.
    """
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    weight = tl.load(weights + place)
    first = tl.load(mean + place)
    second = tl.load(square + place)
    if average is not None:
        before = tl.load(average + place)
    counts = tl.load(skip) == 0.0
    rate = tl.load(lr) if ON_DEVICE else lr
    part = tl.load(share) if ON_DEVICE else share
    step_size = tl.load(ratios + tl.load(of_block + tl.program_id(0))) * -rate
    weight += lamb_direction(weight, first, second, eps, weight_decay) * step_size
    tl.store(weights + place, weight, mask=counts)
    if average is not None:
        tl.store(average + place, averaged(before, weight, part), mask=counts)
    if low is not None:
        tl.store(low + place, weight.to(low.dtype.element_ty), mask=counts)


def judge_update(gradients: Tensor, loss: Tensor, state: Judgement, factor: float, clip: Clip) -> None:
    """See `eco_kernels.judge_update`. Two launches."""
    elements, device = _elements(gradients), gradients.device
    programs = triton.cdiv(elements, CHUNK.value)
    partials = torch.empty((programs, 2), dtype=torch.float32, device=device)
    with launches_on(device):
        _norms_kernel[(programs,)](
            gradients, state.scale, partials, elements, clip.value or math.inf, num_warps=NUM_WARPS, **OPTIONS
        )
        _judge_kernel[(1,)](
            partials,
            loss,
            state.last,
            state.skipped,
            state.in_a_row,
            state.window,
            state.steps,
            state.norm,
            state.clip_factor,
            state.skip,
            state.unscale,
            state.scale,
            state.good,
            programs,
            factor,
            float(clip.norm),
            num_warps=JUDGE_WARPS,
            **OPTIONS,
        )


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
    """See `eco_kernels.adam_update`. One launch."""
    elements, device = _elements(flat.weights), flat.weights.device
    lr, share, on_device = _scalars(flat, lr, share)
    with launches_on(device):
        _adam_kernel[(elements // BLOCK.value,)](
            *flat,
            state.skip,
            state.steps,
            state.unscale,
            state.clip_factor,
            lr,
            share,
            clip.value or math.inf,
            1.0 - betas[0],
            float(betas[1]),
            1.0 - betas[1],
            *(math.log(beta) if beta else -math.inf for beta in betas),
            float(eps),
            0.0 if decoupled else float(weight_decay),
            float(weight_decay) if decoupled else 0.0,
            ON_DEVICE=on_device,
            num_warps=NUM_WARPS,
            **OPTIONS,
        )


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
    """See `eco_kernels.lamb_update`. Three launches."""
    elements, device = _elements(flat.weights), flat.weights.device
    lr, share, on_device = _scalars(flat, lr, share)
    blocks, tensors = elements // BLOCK.value, len(segments.first_block) - 1
    partials = torch.empty((blocks, 2), dtype=torch.float32, device=device)
    ratios = torch.empty((tensors,), dtype=torch.float32, device=device)
    with launches_on(device):
        _lamb_moments_kernel[(blocks,)](
            *flat[:4],
            partials,
            state.skip,
            state.unscale,
            state.clip_factor,
            clip.value or math.inf,
            1.0 - betas[0],
            1.0 - betas[1],
            float(eps),
            float(weight_decay),
            num_warps=NUM_WARPS,
            **OPTIONS,
        )
        _lamb_ratios_kernel[(tensors,)](partials, segments.first_block, ratios, num_warps=NUM_WARPS, **OPTIONS)
        _lamb_kernel[(blocks,)](
            flat.weights,
            flat.mean,
            flat.square,
            flat.average,
            flat.low,
            segments.of_block,
            ratios,
            state.skip,
            lr,
            share,
            float(eps),
            float(weight_decay),
            ON_DEVICE=on_device,
            num_warps=NUM_WARPS,
            **OPTIONS,
        )


def _elements(buffer: Tensor) -> int:
    elements = buffer.numel()
    if elements > 2**31 - CHUNK.value:
        raise ValueError(f"a buffer of {elements} elements is too large; the kernels take up to 2^31")
    return elements


def _scalars(flat: Flat, lr: float | Tensor, share: float | Tensor) -> tuple[float | Tensor, float | Tensor, bool]:
    """Learning rate and share as a kernel takes them: both tensors, or both numbers."""
    if flat.average is None:
        share = lr  # is not read
    if not isinstance(lr, Tensor) and not isinstance(share, Tensor):
        return float(lr), float(share), False
    device = flat.weights.device
    first, second = (
        value if isinstance(value, Tensor) else torch.full((), float(value), device=device) for value in (lr, share)
    )
    return first, second, True


def specialisations() -> Iterator[Specialisation]:
    """The judgement with and without a loss scale; either optimiser with each kind of copies, with scalars of the host,
    and with scalars on the device, as in graphs, where all copies are kept or none."""
    for scaled in (False, True):
        absent = {} if scaled else {"scale": None, "good": None}
        name = "-scaled" * scaled
        yield _specialisation("judge_update", f"norms{name}", _norms_kernel, absent, 4, chunk=CHUNK.value)
        yield _specialisation(
            "judge_update",
            f"judge{name}",
            _judge_kernel,
            absent,
            8 / CHUNK.value,
            chunk=PARAMETERS,
            num_warps=JUDGE_WARPS,
        )
    yield _specialisation("lamb_update", "lamb-moments", _lamb_moments_kernel, {}, 24)
    yield _specialisation("lamb_update", "lamb-ratios", _lamb_ratios_kernel, {}, 8 / BLOCK.value, chunk=PARAMETERS)
    floats = (torch.float32, None)
    for average, low, tensor in product(floats, (None, torch.bfloat16, torch.float16), (False, True)):
        if tensor and (average is None) != (low is None):
            continue
        name = f"{'average' if average else 'alone'}-{short_name(low)}" + "-tensor" * tensor
        constexprs = {key: None for key, kept in (("average", average), ("low", low)) if kept is None}
        constexprs["ON_DEVICE"] = tensor  # type: ignore[assignment]
        copies = 2 * size_of(average) + size_of(low)
        yield _specialisation("adam_update", f"adam-{name}", _adam_kernel, constexprs, 28 + copies, low)
        yield _specialisation("lamb_update", f"lamb-{name}", _lamb_kernel, constexprs, 16 + copies, low)


def _specialisation(
    operation: str,
    name: str,
    kernel: triton.JITFunction,
    constexprs: dict[str, None],
    bytes_each: float,
    low: torch.dtype | None = None,
    *,
    chunk: int = BLOCK.value,
    num_warps: int = NUM_WARPS,
) -> Specialisation:
    """`bytes_each` is for a parameter, `chunk` the parameters of a program."""
    numbers = ("factor", "max_norm", "bound", "rise1", "rise2", "beta2", "log_beta1", "log_beta2", "eps")
    types = dict.fromkeys((*numbers, "weight_decay", "shrink"), "fp32")
    if not constexprs.get("ON_DEVICE", True):
        types |= {"lr": "fp32", "share": "fp32"}
    pointers = [name for name in kernel.arg_names if name not in types and name not in ("elements", "programs")]
    types |= dict.fromkeys(pointers, "*fp32")
    types |= dict.fromkeys(("skipped", "in_a_row", "good"), "*i64")
    types |= dict.fromkeys(("of_block", "first_block"), "*i32")
    types |= {} if low is None else {"low": POINTERS[low]}
    absent = {name: value for name, value in constexprs.items() if name in kernel.arg_names}
    return specialisation(
        operation,
        name,
        kernel,
        types,
        absent,
        num_warps=num_warps,
        outputs=float(chunk),
        bytes=int(PARAMETERS * bytes_each),
        multiples=("elements",),
    )
