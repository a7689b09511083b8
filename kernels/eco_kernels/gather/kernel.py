"""Oriented patches out of flat uint8 stores, and the blend of two stores, as Triton kernels of one launch each.

Bytes, for B patches of P x P pixels with C channels: `gather_patches` reads and writes B P P C; `gather_mix` reads
2 B P P C and writes B C P P values of the result's type.
"""

# mypy: disable-error-code="no-untyped-def"

from collections.abc import Iterator
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from eco_kernels.gather import Places
from eco_kernels.triton_common import (
    BATCH,
    HR_PATCH,
    OPTIONS,
    POINTERS,
    RGB,
    Specialisation,
    launches_on,
    on_device,
    short_name,
    specialisation,
    unit,
)

ROWS = tl.constexpr(8)
VALUES = tl.constexpr(128)
"""A tile of the result: rows, and values of a row (pixels times channels). 1024 bytes per store: 8 per thread."""
NUM_WARPS = 4

_PER_PATCH = ("offsets", "widths", "index", "top", "left", "orientation", "alpha")
"""Read one by one: they may lie anywhere."""


@triton.jit
def tile_of_patch(patch, CHANNELS: tl.constexpr):
    """Rows, values of a row and element offsets of one tile of the result, and which of them are real.

    The tile is taken in the result's order, so that stores are whole sectors; a transposed patch reads down columns,
    whose sectors the neighbouring rows of the tile use again.
    """
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None]
    value = (tl.program_id(2) * VALUES + tl.arange(0, VALUES))[None, :]
    target = tl.program_id(0).to(tl.int64) * (patch * patch * CHANNELS) + row * (patch * CHANNELS) + value
    return row, value, target, (row < patch) & (value < patch * CHANNELS)


@triton.jit
def places_in_store(offsets, widths, index, top, left, orientation, row, value, patch, CHANNELS: tl.constexpr):
    """Element offsets in the store of a tile of an oriented patch."""
    sample = tl.program_id(0)
    column = value // CHANNELS
    channel = value % CHANNELS
    image = tl.load(index + sample)
    turn = tl.load(orientation + sample).to(tl.int32)
    transposed = (turn & 4) != 0
    y = tl.where(transposed, column, row)
    x = tl.where(transposed, row, column)
    y = tl.where((turn & 2) != 0, patch - 1 - y, y)
    x = tl.where((turn & 1) != 0, patch - 1 - x, x)
    width = tl.load(widths + image).to(tl.int64)
    # Stores pass 2^31 bytes, and an image may: the corner's offset is 64-bit, and so is the way inside the patch.
    corner = tl.load(offsets + image) + (tl.load(top + sample) * width + tl.load(left + sample)) * CHANNELS
    return corner + (y * width + x) * CHANNELS + channel


@triton.jit(do_not_specialize_on_alignment=_PER_PATCH)
def _gather_patches_kernel(store, offsets, widths, index, top, left, orientation, out, patch, CHANNELS: tl.constexpr):
    """Cut and orient. One program makes 8 rows of 128 values of one patch.

    Args:
        store: uint8, images back to back, each HWC.
        offsets: int64 (N,), first element of each image.
        widths: int (N,), pixels per row of each image.
        index, top, left, orientation: int (B,), image, corner in pixels, orientation in 0 .. 7.
        out: uint8 (B, patch, patch, CHANNELS), dense.
        patch: side of the patches in pixels.
        CHANNELS: values per pixel.
    """
    row, value, target, mask = tile_of_patch(patch, CHANNELS)
    source = places_in_store(offsets, widths, index, top, left, orientation, row, value, patch, CHANNELS)
    tl.store(out + target, tl.load(store + source, mask=mask, other=0), mask=mask)


@triton.jit(do_not_specialize_on_alignment=_PER_PATCH)
def _gather_mix_kernel(
    store_a,
    store_b,
    offsets,
    widths,
    index,
    top,
    left,
    orientation,
    alpha,
    out,
    patch,
    alpha_stride,
    CHANNELS: tl.constexpr,
):
    """Cut, orient and blend, `(alpha a + (1 - alpha) b) / 255`. One program makes 8 rows of 128 values of one patch.

    Args:
        store_a, store_b: uint8, two stores with the same images sizes.
        alpha: fp32, the weight of `store_a` in sample i lies at `i * alpha_stride`.
        out: fp16, bf16 or fp32 (B, patch, patch, CHANNELS), dense: channels_last.
        The others: as in `_gather_patches_kernel`.
    """
    row, value, target, mask = tile_of_patch(patch, CHANNELS)
    source = places_in_store(offsets, widths, index, top, left, orientation, row, value, patch, CHANNELS)
    a = unit(tl.load(store_a + source, mask=mask, other=0).to(tl.float32))
    b = unit(tl.load(store_b + source, mask=mask, other=0).to(tl.float32))
    weight = tl.load(alpha + tl.program_id(0) * alpha_stride)
    # In this form, and not as a difference, alpha 0 and 1 give the end points exactly.
    mixed = tl.fma(a, weight, b * (1.0 - weight))
    tl.store(out + target, mixed.to(out.dtype.element_ty), mask=mask)


def gather_patches(store: Tensor, places: Places) -> Tensor:
    """See `eco_kernels.gather_patches`. One launch; indices on the CPU are copied to the store's device."""
    patch, channels = places.patch, places.channels
    tables = on_device(store.device, *places[:6])
    out = torch.empty((len(places.image), patch, patch, channels), dtype=torch.uint8, device=store.device)
    grid = _grid(len(places.image), patch, channels)
    with launches_on(store.device):
        _gather_patches_kernel[grid](store, *tables, out, patch, CHANNELS=channels, num_warps=NUM_WARPS, **OPTIONS)
    return out


def gather_mix(store_a: Tensor, store_b: Tensor, places: Places, alpha: Tensor, dtype: torch.dtype) -> Tensor:
    """See `eco_kernels.gather_mix`. One launch; indices on the CPU are copied to the stores' device."""
    patch, channels = places.patch, places.channels
    tables = on_device(store_a.device, *places[:6])
    out = torch.empty((len(places.image), patch, patch, channels), dtype=dtype, device=store_a.device)
    with launches_on(store_a.device):
        _gather_mix_kernel[_grid(len(places.image), patch, channels)](
            store_a,
            store_b,
            *tables,
            alpha,
            out,
            patch,
            alpha.stride(0) if alpha.ndim else 0,
            CHANNELS=channels,
            num_warps=NUM_WARPS,
            **OPTIONS,
        )
    return out.permute(0, 3, 1, 2)


def _grid(batch: int, patch: int, channels: int) -> tuple[int, int, int]:
    return batch, triton.cdiv(patch, ROWS.value), triton.cdiv(patch * channels, VALUES.value)


def specialisations() -> Iterator[Specialisation]:
    """Both kernels on RGB, with every type of result and of `widths`: `gather_patches` at HR, `gather_mix` at x2 LR."""
    places = {"offsets": "*i64", "index": "*i64", "top": "*i64", "left": "*i64", "orientation": "*i64"}
    stores = {"store": "*u8", "store_a": "*u8", "store_b": "*u8", "alpha": "*fp32"}
    values = BATCH * RGB * HR_PATCH**2
    for dtype, widths in product((torch.uint8, torch.float32, torch.bfloat16, torch.float16), ("*i64", "*i32")):
        mixed = dtype != torch.uint8
        yield specialisation(
            "gather_mix" if mixed else "gather_patches",
            f"{'gather-mix' if mixed else 'gather'}-{short_name(dtype)}-{widths[1:]}",
            _gather_mix_kernel if mixed else _gather_patches_kernel,
            {**places, **stores, "widths": widths, "out": POINTERS[dtype]},
            {"CHANNELS": RGB},
            num_warps=NUM_WARPS,
            outputs=ROWS.value * VALUES.value,
            bytes=values // 4 * (2 + dtype.itemsize) if mixed else values * 2,
        )
