"""The loss on the blended target and its gradient in one pass, as a Triton kernel.

The blended target never lies in memory. Each program writes one partial sum; they are added in a fixed order, so the
loss has the same bits in every run. No atomics, no autotuning: another block size would be another order.

Bytes, for N elements: sr, hr and centroid read once, the gradient written once (hr or centroid left out where None);
4 bytes per 2048 elements of partial sums written and read once.
"""

# mypy: disable-error-code="no-untyped-def"

from collections.abc import Iterator
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from eco_kernels.images import memory_format
from eco_kernels.loss import CHARBONNIER_EPS, KINDS
from eco_kernels.triton_common import (
    BATCH,
    HR_PATCH,
    OPTIONS,
    POINTERS,
    RGB,
    Specialisation,
    launches_on,
    short_name,
    size_of,
    specialisation,
    unit,
)

BLOCK = tl.constexpr(2048)
"""Elements per program: 16 per thread, so that one 128-bit load takes the uint8 of a thread."""
NUM_WARPS = 4

L1 = tl.constexpr(KINDS.index("l1"))
L2 = tl.constexpr(KINDS.index("l2"))

_EPS_SQUARED = tl.constexpr(CHARBONNIER_EPS**2)


@triton.jit
def image_values(image, first, order, place, mask, SAME: tl.constexpr):
    """fp32 values in [0, 1] of an image: by storage order where its layout is that of `sr`, else by strides."""
    offset = order if SAME else place
    value = tl.load(image + first + offset, mask=mask, other=0).to(tl.float32)
    return unit(value) if image.dtype.element_ty == tl.uint8 else value


@triton.jit(do_not_specialize_on_alignment=("alpha", "weights", "scale"))
def _eco_loss_kernel(
    sr,
    hr,
    centroid,
    alpha,
    weights,
    scale,
    grad,
    partials,
    elements,
    alpha_stride,
    count,
    height,
    width,
    hr_stride_b,
    hr_stride_c,
    hr_stride_h,
    hr_stride_w,
    centroid_stride_b,
    centroid_stride_c,
    centroid_stride_h,
    centroid_stride_w,
    CHANNELS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HR_SAME: tl.constexpr,
    CENTROID_SAME: tl.constexpr,
    SCALE_ON_DEVICE: tl.constexpr,
    KIND: tl.constexpr,
):
    """Loss and gradient of 2048 elements of one sample.

    Args:
        sr: fp16, bf16 or fp32 (B, C, H, W), dense in each sample: NCHW, or NHWC where INTERLEAVED.
        hr, centroid: uint8, fp16, bf16 or fp32 of the same size, any strides; one of them may be None.
        alpha: fp32, sample i's weight of `hr` lies at `i * alpha_stride`; None where hr or centroid is.
        weights: fp32 (B,), factor of each sample's loss; None means 1.
        scale: factor of the difference: fp32 0-dim where SCALE_ON_DEVICE, else a number.
        grad: like sr.
        partials: fp32 (B, programs per sample), sums of the loss divided by `count`.
        elements: elements of a sample.
        count: elements of the batch, as fp32.
        height, width: size of the images.
        CHANNELS: channels of the images.
        HR_SAME, CENTROID_SAME: whether the image lies in memory like `sr`.
        KIND: the loss's place in `KINDS`.
    """
    # Where the elements lie: in the order of `sr`, and as a place in the images, whose layout may be another.
    sample = tl.program_id(1)
    first = sample.to(tl.int64) * elements
    order = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = order < elements
    if INTERLEAVED:
        channel, row, column = order % CHANNELS, order // (CHANNELS * width), order // CHANNELS % width
    else:
        channel, row, column = order // (height * width), order // width % height, order % width

    # The blended target, `weight hr + (1 - weight) centroid`, in [0, 1].
    value = tl.load(sr + first + order, mask=mask, other=0).to(tl.float32)
    if hr is not None:
        start = first if HR_SAME else sample.to(tl.int64) * hr_stride_b
        place = channel * hr_stride_c + row * hr_stride_h + column * hr_stride_w
        target = image_values(hr, start, order, place, mask, HR_SAME)
    if centroid is not None:
        start = first if CENTROID_SAME else sample.to(tl.int64) * centroid_stride_b
        place = channel * centroid_stride_c + row * centroid_stride_h + column * centroid_stride_w
        mu = image_values(centroid, start, order, place, mask, CENTROID_SAME)
        if hr is not None:
            weight = tl.load(alpha + sample * alpha_stride)
            # In this form, and not as a difference, alpha 0 and 1 give the end points exactly.
            target = tl.fma(target, weight, mu * (1.0 - weight))
        else:
            target = mu

    # Loss and slope of the scaled difference.
    factor = tl.load(scale) if SCALE_ON_DEVICE else scale  # as a number it costs no load, and fewer registers
    difference = (value - target) * factor
    if KIND == L1:
        loss = tl.abs(difference)
        slope = (difference > 0).to(tl.float32) - (difference < 0).to(tl.float32)
    elif KIND == L2:
        loss = difference * difference
        slope = 2.0 * difference
    else:
        loss = tl.sqrt_rn(difference * difference + _EPS_SQUARED)
        slope = tl.div_rn(difference, loss)
    # The mean's share of both: the gradient to memory, the loss as one partial sum of the program.
    magnitude = tl.div_rn(factor, count)
    sample_weight = 1.0
    if weights is not None:
        sample_weight = tl.load(weights + sample)
    # Their product is one number for the whole sample: with l1 every gradient has that magnitude, rounded once.
    tl.store(grad + first + order, (slope * (magnitude * sample_weight)).to(grad.dtype.element_ty), mask=mask)
    total = tl.sum(tl.where(mask, loss, 0.0)) * sample_weight
    tl.store(partials + sample * tl.num_programs(0) + tl.program_id(0), tl.div_rn(total, count))


def eco_loss_with_grad(
    sr: Tensor,
    hr: Tensor | None,
    centroid: Tensor | None,
    alpha: Tensor | None,
    kind: str,
    scale_factor: float | Tensor,
    weights: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See `eco_kernels.eco_loss_with_grad`. Two launches: the kernel, and the sum of its partial sums."""
    batch, channels, height, width = sr.shape
    elements = channels * height * width
    if elements > 2**31 - BLOCK.value or any(_reach(image) >= 2**31 for image in (hr, centroid) if image is not None):
        raise ValueError(f"a sample of shape {tuple(sr.shape[1:])} is too large; the kernel takes up to 2^31 elements")
    sr = sr.contiguous(memory_format=memory_format(sr))
    grad = torch.empty_like(sr)
    programs = triton.cdiv(elements, BLOCK.value)
    partials = torch.empty((batch, programs), dtype=torch.float32, device=sr.device)
    none = (0, 0, 0, 0)
    with launches_on(sr.device):
        _eco_loss_kernel[(programs, batch)](
            sr,
            hr,
            centroid,
            alpha if hr is not None and centroid is not None else None,
            None if weights is None else weights.contiguous(),
            scale_factor if isinstance(scale_factor, Tensor) else float(scale_factor),
            grad,
            partials,
            elements,
            alpha.stride(0) if alpha is not None and alpha.ndim else 0,
            float(batch * elements),
            height,
            width,
            *(none if hr is None else hr.stride()),
            *(none if centroid is None else centroid.stride()),
            CHANNELS=channels,
            INTERLEAVED=memory_format(sr) == torch.channels_last,
            HR_SAME=hr is not None and hr.stride() == sr.stride(),
            CENTROID_SAME=centroid is not None and centroid.stride() == sr.stride(),
            SCALE_ON_DEVICE=isinstance(scale_factor, Tensor),
            KIND=KINDS.index(kind),
            num_warps=NUM_WARPS,
            **OPTIONS,
        )
    return partials.sum(), grad


def _reach(image: Tensor) -> int:
    return sum((size - 1) * stride for size, stride in zip(image.shape[1:], image.stride()[1:], strict=True))


def specialisations() -> Iterator[Specialisation]:
    """RGB in one layout: every type of sr, of hr and centroid (or one of them None), every kind of loss; and with a
    factor on the device, as in graphs of PyTorch, for 8-bit targets."""
    images = (torch.uint8, torch.bfloat16, torch.float32, None)
    floats = (torch.float32, torch.bfloat16, torch.float16)
    for kind, sr, hr, centroid, tensor in product(KINDS, floats, images, images, (False, True)):
        if (hr is None and centroid is None) or (tensor and not hr == centroid == torch.uint8):
            continue
        given = {name: dtype for name, dtype in (("hr", hr), ("centroid", centroid)) if dtype is not None}
        absent = {"hr", "centroid", "alpha" if len(given) < 2 else "weights", "weights"} - given.keys()
        constexprs = {
            **dict.fromkeys(absent),
            "CHANNELS": RGB,
            "INTERLEAVED": True,
            "HR_SAME": hr is not None,
            "CENTROID_SAME": centroid is not None,
            "SCALE_ON_DEVICE": tensor,
            "KIND": KINDS.index(kind),
        }
        types = {
            **{name: POINTERS[dtype] for name, dtype in given.items()},
            "sr": POINTERS[sr],
            "grad": POINTERS[sr],
            "alpha": "*fp32",
            "partials": "*fp32",
            "scale": "*fp32" if tensor else "fp32",
            "count": "fp32",
        }
        element = 2 * sr.itemsize + size_of(hr) + size_of(centroid)
        yield specialisation(
            "eco_loss_with_grad",
            "-".join((kind, *map(short_name, (sr, hr, centroid)))) + "-tensor" * tensor,
            _eco_loss_kernel,
            types,
            constexprs,
            num_warps=NUM_WARPS,
            outputs=float(BLOCK.value),
            bytes=BATCH * RGB * HR_PATCH**2 * element,
            multiples=("elements",),
        )
