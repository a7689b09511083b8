"""The student's input, `alpha lr + (1 - alpha) down(centroid)`, as two Triton kernels.

The first is that of `eco_kernels.filter`, for the rows of the patches only. The second filters
along the width, blends with `lr` and stores the result oriented: all before the store is in the image's own frame.

Bytes, for B patches of P x P pixels with C channels: the part of the centroid that the filter reaches (rows of the
patch and up to 2 s more on each side, whole window width) and `lr` on the patch, read once; B C P P values written;
scratch (P rows, window width, uint8 or with rounding "none" fp32) written and read once.
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
    scratch_bytes,
    sum_to_8_bit,
    vertical_specialisation,
)
from eco_kernels.planes import check_offsets, dense_lines
from eco_kernels.triton_common import (
    OPTIONS,
    POINTERS,
    Specialisation,
    launches_on,
    on_device,
    short_name,
    specialisation,
    unit,
)


@triton.jit(do_not_specialize_on_alignment=("alpha", "top", "left", "orientation"))
def _horizontal_mix_kernel(
    scratch,
    lr,
    alpha,
    top,
    left,
    orientation,
    out,
    width,
    rows,
    columns,
    row_tiles,
    column_tiles,
    alpha_stride,
    lr_image,
    lr_channel,
    lr_row,
    lr_column,
    PLANES: tl.constexpr,
    CHANNELS: tl.constexpr,
    SCALE: tl.constexpr,
    TAPS: tl.constexpr,
    FIRST: tl.constexpr,
    DIVISOR: tl.constexpr,
    SYMMETRIC: tl.constexpr,
):
    """Downscale along the width, blend and orient. One program makes 16 rows of 32 values of a plane's line.

    Args:
        scratch: uint8 or fp32 (images * PLANES, width * CHANNELS, 16 * row_tiles), dense: the patches' rows, filtered.
        lr: uint8, fp16, bf16 or fp32 window in low resolution; strides `lr_image`, `lr_channel`, `lr_row`, `lr_column`.
        alpha: fp32, image i's weight of `lr` lies at `i * alpha_stride`.
        top, left: int (images,), the patch's corner in the window in low-resolution pixels; None means 0.
        orientation: int (images,) in 0 .. 7; None means 0. Needs rows == columns.
        out: fp16, bf16 or fp32 (images, rows, columns, PLANES * CHANNELS), dense.
        width: centroid pixels of a window's row.
        rows, columns: size of the patch.
        row_tiles, column_tiles: programs along the rows and along the lines of a plane.
        PLANES, CHANNELS: planes per image and values per pixel of a plane; one of them is 1.
    """
    # Which plane, which values of its lines, which rows; and where these lie in the window.
    plane = tl.program_id(0) // column_tiles
    image = plane // PLANES
    place = tl.program_id(0) % column_tiles * COLUMNS + tl.arange(0, COLUMNS)
    channel = place % CHANNELS
    column = place // CHANNELS
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    window_row = row
    window_column = column
    if top is not None:
        window_row += tl.load(top + image).to(tl.int32)
        window_column += tl.load(left + image).to(tl.int32)

    # The bicubic along the width, in [0, 1].
    pitch = row_tiles * ROWS
    total = filter_columns(
        scratch + plane.to(tl.int64) * (width * CHANNELS * pitch),
        window_column,
        channel,
        row,
        width,
        pitch,
        CHANNELS,
        SCALE,
        TAPS,
        FIRST,
        SYMMETRIC,
    )
    if scratch.dtype.element_ty == tl.uint8:
        down = unit(sum_to_8_bit(total, DIVISOR) - BIAS)
    else:
        down = total * (1.0 / DIVISOR)

    # Blend with the real LR.
    channel += plane % PLANES
    mask = (row[:, None] < rows) & (column[None, :] < columns)
    source = lr + image.to(tl.int64) * lr_image
    source += window_row[:, None] * lr_row + (window_column * lr_column + channel * lr_channel)[None, :]
    real = tl.load(source, mask=mask, other=0).to(tl.float32)
    if lr.dtype.element_ty == tl.uint8:
        real = unit(real)
    weight = tl.load(alpha + image * alpha_stride)
    # In this form, and not as a difference, alpha 0 and 1 give the end points exactly.
    mixed = tl.fma(real, weight, tl.trans(down) * (1.0 - weight))

    # Orient: flips change the place, a transposition swaps the strides; then store.
    depth: tl.constexpr = PLANES * CHANNELS
    row_stride = columns * depth
    column_stride = depth
    if orientation is not None:
        turn = tl.load(orientation + image).to(tl.int32)
        row = tl.where((turn & 2) != 0, rows - 1 - row, row)
        column = tl.where((turn & 1) != 0, columns - 1 - column, column)
        transposed = (turn & 4) != 0
        row_stride = tl.where(transposed, depth, columns * depth)
        column_stride = tl.where(transposed, columns * depth, depth)
    target = out + image.to(tl.int64) * (rows * columns * depth)
    target += row[:, None] * row_stride + (column * column_stride + channel)[None, :]
    tl.store(target, mixed.to(out.dtype.element_ty), mask=mask)


def downsample_mix(
    centroid: Tensor,
    lr: Tensor,
    alpha: Tensor,
    scale: int,
    top: Tensor | None,
    left: Tensor | None,
    patch: int | None,
    orientation: Tensor | None,
    rounding: str,
    border: str,
    dtype: torch.dtype,
) -> Tensor:
    """See `eco_kernels.downsample_mix`. Two launches; indices on the CPU are copied to the images' device."""
    centroid, layout = dense_lines(centroid)
    check_offsets("lr", lr)
    device = centroid.device
    top, left, orientation = (
        None if place is None else on_device(device, place)[0] for place in (top, left, orientation)
    )
    batch, channels, rows, columns = lr.shape
    if patch is not None:
        rows = columns = patch
    out = torch.empty((batch, channels, rows, columns), dtype=dtype, device=device, memory_format=torch.channels_last)
    scratch = launch_vertical(centroid, layout, scale, rounding, border, top, rows)
    row_tiles = triton.cdiv(rows, ROWS.value)
    column_tiles = triton.cdiv(columns * layout.channels, COLUMNS.value)
    with launches_on(device):
        _horizontal_mix_kernel[(len(scratch) * column_tiles, row_tiles)](
            scratch,
            lr,
            alpha,
            top,
            left,
            orientation,
            out,
            centroid.shape[3],
            rows,
            columns,
            row_tiles,
            column_tiles,
            alpha.stride(0) if alpha.ndim else 0,
            *lr.stride(),
            PLANES=layout.planes,
            CHANNELS=layout.channels,
            DIVISOR=DIVISOR[scale],
            **filter_constants(scale, border),
            num_warps=NUM_WARPS,
            **OPTIONS,
        )
    return out


def specialisations() -> Iterator[Specialisation]:
    """Both kernels on patches for each scale, centroid dtype, layout, rounding, dtype of `lr` and of the result."""
    operation = "downsample_mix"
    for scale, dtype, layout, rounding in product(TAPS, POINTERS, LAYOUTS, ROUNDINGS):
        name = f"patch-x{scale}-{short_name(dtype)}-{layout}-{rounding}"
        planes, _ = LAYOUTS[layout]
        yield vertical_specialisation(operation, name, scale, dtype, planes, rounding, patches=True)
    # The second kernel does not see the centroid's dtype, only the scratch image's.
    for scale, layout, rounding, real, result in product(
        TAPS, LAYOUTS, ROUNDINGS, (torch.uint8, torch.float32), (torch.float32, torch.bfloat16, torch.float16)
    ):
        planes, channels = LAYOUTS[layout]
        types = {
            "scratch": "*u8" if rounding == "matlab" else "*fp32",
            "lr": POINTERS[real],
            "alpha": "*fp32",
            "top": "*i64",
            "left": "*i64",
            "orientation": "*i64",
            "out": POINTERS[result],
        }
        constants = {"PLANES": planes, "CHANNELS": channels, "DIVISOR": DIVISOR[scale]}
        yield specialisation(
            operation,
            f"horizontal-mix-x{scale}-{short_name(real)}-{short_name(result)}-{layout}-{rounding}",
            _horizontal_mix_kernel,
            types,
            constants | filter_constants(scale, "symmetric"),
            num_warps=NUM_WARPS,
            outputs=ROWS.value * COLUMNS.value,
            bytes=scratch_bytes(scale, rounding) + HR_VALUES // scale**2 * (real.itemsize + result.itemsize),
        )
