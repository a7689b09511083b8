"""What both bicubic operations are made of: the pass along the height as a kernel, the sums of the one along the width.

Every output is a sum over taps, `out[o] = sum_k TAPS[k] * x[SCALE * o + FIRST + k] / DIVISOR`, along one axis and then
along the other; positions outside the image are reflected into it, and "matlab" rounds to 8 bit after each axis.

Both passes read 16 bytes at a time along the axis that they do not filter, so a border costs arithmetic on one row
number and never narrows a load. For that the scratch image lies turned: columns outside, rows inside, padded to
multiples of 16 rows.

Rounding half up is a sum with 2^23, after which the last bits of the fp32 number are the whole number; a factor
1 + 2^-21 moves ties, and only ties, upwards. Both factors in use are tested for every input.
"""

# mypy: disable-error-code="no-untyped-def"
# The arguments of a kernel are the compiler's, which takes annotations for types of its own.

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from eco_kernels.bicubic import DIVISOR, FIRST_TAP, TAPS
from eco_kernels.planes import Layout, check_offsets
from eco_kernels.triton_common import (
    BATCH,
    HR_PATCH,
    OPTIONS,
    POINTERS,
    RGB,
    Specialisation,
    launches_on,
    specialisation,
)

ROWS = tl.constexpr(16)
"""Output rows of a tile in both kernels: 16 bytes of a scratch column."""
COLUMNS = tl.constexpr(32)
"""Output values of a line in a tile of the second kernel: one per lane of a warp."""
NUM_WARPS = 1

BIAS = tl.constexpr(2.0**23)
_TIES_UP = tl.constexpr(1 + 2.0**-21)


@triton.jit
def reflect(position, size, SYMMETRIC: tl.constexpr):
    """Map positions into `0 .. size - 1`: mirrored as often as an image smaller than the filter needs, or clamped."""
    if SYMMETRIC:
        position = tl.maximum(position, -1 - position)
        position = tl.minimum(position, 2 * size - 1 - position)
        position = tl.maximum(position, -1 - position)
    else:
        position = tl.maximum(position, 0)
    # Also keeps lanes beyond the image, whose results are not stored, from reading outside.
    return tl.minimum(position, size - 1)


@triton.jit
def half_up(value, FACTOR: tl.constexpr):
    """2^23 plus `value * FACTOR` rounded half up, fp32; the product lies in 0 .. 255."""
    return tl.fma(value, FACTOR * _TIES_UP, BIAS)


@triton.jit
def sum_to_8_bit(total, DIVISOR: tl.constexpr):
    """2^23 plus a sum of taps times 8-bit values over the divisor, rounded and clamped to 8 bit, fp32."""
    total = tl.minimum(tl.maximum(total, 0), 255 * DIVISOR)
    return half_up(total.to(tl.float32), 1.0 / DIVISOR)


@triton.jit
def low_byte(biased):
    """The 8-bit number that was rounded into 2^23 + number."""
    return biased.to(tl.int32, bitcast=True).to(tl.uint8)


@triton.jit
def image_to_8_bit(value):
    """Whole fp32 numbers 0 .. 255 of a float image in [0, 1]: clamp, times 255 in fp32, round half up."""
    if value.dtype == tl.float32:
        value = tl.minimum(tl.maximum(value, 0.0), 1.0) * 255.0
        whole = (value + BIAS) - BIAS
        # The sum rounds ties to even; those that went down come up again.
        whole = tl.where(value - whole == 0.5, whole + 1.0, whole)
    else:
        value = tl.minimum(tl.maximum(value.to(tl.float32), 0.0), 1.0)
        whole = half_up(value, 255.0) - BIAS
    return whole


@triton.jit
def add_tap(total, value, TAP: tl.constexpr):
    """`total + TAP * value`: whole numbers stay whole, fp32 is rounded once."""
    if TAP != 0:
        if total.dtype == tl.int32:
            total += value * TAP
        else:
            total = tl.fma(value, TAP * 1.0, total)
    return total


@triton.jit
def add_row(totals, value, NUMBER: tl.constexpr, SCALE: tl.constexpr, TAPS: tl.constexpr):
    """Add input row `NUMBER` to those of 4 adjacent outputs that it is a part of."""
    result = totals[:0]
    for output in tl.static_range(4):
        if NUMBER - SCALE * output >= 0 and NUMBER - SCALE * output < len(TAPS):
            result = result + (add_tap(totals[output], value, TAPS[NUMBER - SCALE * output]),)
        else:
            result = result + (totals[output],)
    return result


@triton.jit
def finish_rows(total, kind: tl.constexpr, FACTOR: tl.constexpr, DIVISOR: tl.constexpr):
    """The sum of a filtered row as it is stored: 8 bit, or fp32 times a factor."""
    return low_byte(sum_to_8_bit(total, DIVISOR)) if kind == tl.uint8 else total.to(tl.float32) * FACTOR


@triton.jit(do_not_specialize_on_alignment=("top",))
def _vertical_kernel(
    x,
    scratch,
    top,
    height,
    row_tiles,
    line_units,
    image_units,
    channel_units,
    row_units,
    PLANES: tl.constexpr,
    UNIT: tl.constexpr,
    SCALE: tl.constexpr,
    TAPS: tl.constexpr,
    FIRST: tl.constexpr,
    DIVISOR: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Downscale along the height: `scratch[o] = sum_k TAPS[k] * x[SCALE * o + FIRST + k]`, to 8 bit or over DIVISOR.

    One program makes 16 output rows of `BLOCK` values of a line; a thread makes 4 adjacent rows of its values, so that
    an input value is read and converted once for them.

    Args:
        x: uint8, fp16, bf16 or fp32 images with dense lines; strides `image_units`, `channel_units` and `row_units`
            times `UNIT`.
        scratch: uint8 (sums rounded to 8 bit) or fp32 (not rounded), (planes, line, 16 * row_tiles), dense.
        top: int (images,), first output row of each image; None means 0.
        height: input rows.
        row_tiles: programs along the output rows of a plane.
        line_units: values of a line, in units of `UNIT`.
        PLANES: planes per image.
        UNIT: power of two up to 16 that divides the line and the strides; known here, it allows wide loads.
    """
    EXACT: tl.constexpr = scratch.dtype.element_ty == tl.uint8
    BYTES: tl.constexpr = x.dtype.element_ty == tl.uint8
    # Which plane, which 16 of its output rows, which values of the line.
    plane = tl.program_id(0) // row_tiles
    tile = tl.program_id(0) % row_tiles
    image = plane // PLANES
    line = line_units * UNIT
    first_row = tile * ROWS
    if top is not None:
        first_row += tl.load(top + image).to(tl.int32)

    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    group = tl.arange(0, ROWS // 4)[:, None]
    source = x + image.to(tl.int64) * image_units * UNIT + (plane % PLANES) * channel_units * UNIT + column[None, :]
    start = SCALE * (first_row + 4 * group) + FIRST
    # Load every input row once, convert it, and add it to those of the thread's 4 outputs that it is a part of.
    zero = tl.zeros((ROWS // 4, BLOCK), tl.int32 if BYTES else tl.float32)
    totals = (zero, zero, zero, zero)
    for number in tl.static_range(3 * SCALE + len(TAPS)):
        row = reflect(start + number, height, SYMMETRIC)
        value = tl.load(source + row * (row_units * UNIT), mask=column[None, :] < line, other=0)
        if BYTES:
            value = value.to(tl.int32)
        elif EXACT:
            value = image_to_8_bit(value)
        else:
            value = value.to(tl.float32)
        totals = add_row(totals, value, number, SCALE, TAPS)

    # Round or scale the four sums, and join them to rows: (groups, columns, 4).
    kind: tl.constexpr = scratch.dtype.element_ty
    FACTOR: tl.constexpr = 1.0 / (DIVISOR * 255) if BYTES else 1.0 / DIVISOR
    even = tl.join(finish_rows(totals[0], kind, FACTOR, DIVISOR), finish_rows(totals[2], kind, FACTOR, DIVISOR))
    odd = tl.join(finish_rows(totals[1], kind, FACTOR, DIVISOR), finish_rows(totals[3], kind, FACTOR, DIVISOR))
    rows = tl.reshape(tl.join(even, odd), (ROWS // 4, BLOCK, 4))
    # Turn, so that the rows of a column lie side by side, and store.
    turned = tl.reshape(tl.permute(rows, (1, 0, 2)), (BLOCK, ROWS))
    pitch = row_tiles * ROWS
    target = scratch + plane.to(tl.int64) * line * pitch + tile * ROWS
    target += column[:, None] * pitch + tl.arange(0, ROWS)[None, :]
    tl.store(target, turned, mask=column[:, None] < line)


@triton.jit
def filter_columns(
    scratch,
    column,
    channel,
    row,
    width,
    pitch,
    CHANNELS: tl.constexpr,
    SCALE: tl.constexpr,
    TAPS: tl.constexpr,
    FIRST: tl.constexpr,
    SYMMETRIC: tl.constexpr,
):
    """`sum_k TAPS[k] * scratch[SCALE * column + FIRST + k]`, `(columns, rows)`, int32 or fp32; columns of the plane."""
    EXACT: tl.constexpr = scratch.dtype.element_ty == tl.uint8
    total = tl.zeros((COLUMNS, ROWS), tl.int32 if EXACT else tl.float32)
    start = SCALE * column + FIRST
    for number in tl.static_range(len(TAPS)):
        if TAPS[number] != 0:
            position = reflect(start + number, width, SYMMETRIC) * CHANNELS + channel
            value = tl.load(scratch + position[:, None] * pitch + row[None, :])
            if EXACT:
                value = value.to(tl.int32)
            total = add_tap(total, value, TAPS[number])
    return total


def filter_constants(scale: int, border: str) -> dict[str, Any]:
    """The constexprs that both kernels share."""
    return {
        "SCALE": scale,
        "TAPS": TAPS[scale],
        "FIRST": FIRST_TAP[scale],
        "SYMMETRIC": border == "symmetric",
    }


def block(dtype: torch.dtype, scale: int, rounding: str) -> int:
    """Values of a line per program of the first kernel: 16 bytes for each of the 8 threads that share a row.

    Each is halved with the 28 loads of scale 4, which sm_100 would keep in 168 registers and spill, and with the fp32
    scratch image of uint8, whose 16 values per thread have 64 sums.
    """
    return 128 // dtype.itemsize >> (scale == 4) + (dtype == torch.uint8 and rounding == "none")


def launch_vertical(
    x: Tensor, layout: Layout, scale: int, rounding: str, border: str, top: Tensor | None, rows: int
) -> Tensor:
    """Allocate the scratch image, `(planes, line, rows up to a multiple of 16)`, and run the first kernel."""
    check_offsets("the image batch", x)
    line = layout.units[0] * layout.unit
    row_tiles = triton.cdiv(rows, ROWS.value)
    shape = (len(x) * layout.planes, line, row_tiles * ROWS.value)
    scratch = torch.empty(shape, dtype=torch.uint8 if rounding == "matlab" else torch.float32, device=x.device)
    columns = block(x.dtype, scale, rounding)
    with launches_on(x.device):
        _vertical_kernel[(shape[0] * row_tiles, triton.cdiv(line, columns))](
            x,
            scratch,
            top,
            x.shape[2],
            row_tiles,
            *layout.units,
            PLANES=layout.planes,
            UNIT=layout.unit,
            DIVISOR=DIVISOR[scale],
            BLOCK=columns,
            **filter_constants(scale, border),
            num_warps=NUM_WARPS,
            **OPTIONS,
        )
    return scratch


LAYOUTS = {"nchw": (3, 1), "channels_last": (1, 3)}
"""Planes per image and values per pixel of an RGB batch."""

HR_VALUES = BATCH * RGB * HR_PATCH**2


def scratch_bytes(scale: int, rounding: str) -> int:
    """Of the scratch image of a whole batch."""
    return HR_VALUES // scale * (1 if rounding == "matlab" else 4)


def vertical_specialisation(
    operation: str, name: str, scale: int, dtype: torch.dtype, planes: int, rounding: str, *, patches: bool
) -> Specialisation:
    """The first kernel on 16-byte aligned lines, for rows of patches or for whole images."""
    types = {"x": POINTERS[dtype], "scratch": "*u8" if rounding == "matlab" else "*fp32", "top": "*i64"}
    columns = block(dtype, scale, rounding)
    constexprs = {
        **({} if patches else {"top": None}),
        "PLANES": planes,
        "UNIT": 16,
        "DIVISOR": DIVISOR[scale],
        "BLOCK": columns,
        **filter_constants(scale, "symmetric"),
    }
    return specialisation(
        operation,
        f"vertical-{name}",
        _vertical_kernel,
        types,
        constexprs,
        num_warps=NUM_WARPS,
        outputs=ROWS.value * columns / scale,
        bytes=HR_VALUES * dtype.itemsize + scratch_bytes(scale, rounding),
    )
