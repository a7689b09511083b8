"""The exact bicubic as two Triton kernels: along the height into a turned scratch image, then along the width.

The first, and what both do with taps and borders, is in `eco_kernels.filter`.

Bytes, for an input of N elements of b bytes at scale s: N b read (the rows at a tile's rim again, from the cache),
N / s of scratch written and read (4 N / s with rounding "none"), N b / s^2 written.
"""

# mypy: disable-error-code="no-untyped-def"

from collections.abc import Iterator
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from eco_kernels.bicubic import DIVISOR, ROUNDINGS, TAPS
from eco_kernels.filter import (
    BIAS,
    COLUMNS,
    HR_VALUES,
    LAYOUTS,
    NUM_WARPS,
    ROWS,
    filter_columns,
    filter_constants,
    launch_vertical,
    low_byte,
    scratch_bytes,
    sum_to_8_bit,
    vertical_specialisation,
)
from eco_kernels.images import memory_format
from eco_kernels.planes import dense_lines
from eco_kernels.triton_common import OPTIONS, POINTERS, Specialisation, launches_on, short_name, specialisation, unit


@triton.jit
def _horizontal_kernel(
    scratch,
    out,
    width,
    rows,
    row_tiles,
    column_tiles,
    CHANNELS: tl.constexpr,
    SCALE: tl.constexpr,
    TAPS: tl.constexpr,
    FIRST: tl.constexpr,
    DIVISOR: tl.constexpr,
    SYMMETRIC: tl.constexpr,
):
    """Downscale along the width and turn back. One program makes 16 rows of 32 values of a line.

    Args:
        scratch: uint8 or fp32 (planes, width * CHANNELS, 16 * row_tiles), dense.
        out: uint8, fp16, bf16 or fp32 (planes, rows, width / SCALE * CHANNELS), dense.
        width: input pixels of a row.
        rows: output rows.
        row_tiles, column_tiles: programs along the rows and along the lines of a plane.
    """
    EXACT: tl.constexpr = scratch.dtype.element_ty == tl.uint8
    # Which plane, which 32 values of its lines, which 16 rows.
    plane = (tl.program_id(0) // column_tiles).to(tl.int64)
    place = tl.program_id(0) % column_tiles * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    pitch = row_tiles * ROWS
    line = width // SCALE * CHANNELS

    # Sum along the width, round or scale.
    total = filter_columns(
        scratch + plane * (width * CHANNELS * pitch),
        place // CHANNELS,
        place % CHANNELS,
        row,
        width,
        pitch,
        CHANNELS,
        SCALE,
        TAPS,
        FIRST,
        SYMMETRIC,
    )
    if not EXACT:
        result = total * (1.0 / DIVISOR)
    elif out.dtype.element_ty == tl.uint8:
        result = low_byte(sum_to_8_bit(total, DIVISOR))
    else:
        result = unit(sum_to_8_bit(total, DIVISOR) - BIAS)
    # Turn back and store.
    target = out + plane * (rows * line) + row[:, None] * line + place[None, :]
    tl.store(target, tl.trans(result).to(out.dtype.element_ty), mask=(row[:, None] < rows) & (place[None, :] < line))


def bicubic_downsample(x: Tensor, scale: int, rounding: str, border: str) -> Tensor:
    """See `eco_kernels.bicubic_downsample`. Two launches; images with other than dense lines are copied first."""
    x, layout = dense_lines(x)
    batch, channels, height, width = x.shape
    rows, columns = height // scale, width // scale
    shape = (batch, channels, rows, columns)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))
    scratch = launch_vertical(x, layout, scale, rounding, border, None, rows)
    row_tiles = triton.cdiv(rows, ROWS.value)
    column_tiles = triton.cdiv(columns * layout.channels, COLUMNS.value)
    with launches_on(x.device):
        _horizontal_kernel[(len(scratch) * column_tiles, row_tiles)](
            scratch,
            out,
            width,
            rows,
            row_tiles,
            column_tiles,
            CHANNELS=layout.channels,
            DIVISOR=DIVISOR[scale],
            **filter_constants(scale, border),
            num_warps=NUM_WARPS,
            **OPTIONS,
        )
    return out


def specialisations() -> Iterator[Specialisation]:
    """Both kernels for each scale, dtype, layout and rounding."""
    operation = "bicubic_downsample"
    for scale, dtype, layout, rounding in product(TAPS, POINTERS, LAYOUTS, ROUNDINGS):
        if dtype == torch.uint8 and rounding == "none":
            continue
        planes, channels = LAYOUTS[layout]
        name = f"x{scale}-{short_name(dtype)}-{layout}-{rounding}"
        yield vertical_specialisation(operation, name, scale, dtype, planes, rounding, patches=False)
        yield specialisation(
            operation,
            f"horizontal-{name}",
            _horizontal_kernel,
            {"scratch": "*u8" if rounding == "matlab" else "*fp32", "out": POINTERS[dtype]},
            {"CHANNELS": channels, "DIVISOR": DIVISOR[scale], **filter_constants(scale, "symmetric")},
            num_warps=NUM_WARPS,
            outputs=ROWS.value * COLUMNS.value,
            bytes=scratch_bytes(scale, rounding) + HR_VALUES // scale**2 * dtype.itemsize,
        )
