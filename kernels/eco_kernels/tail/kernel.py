"""The tail as Triton kernels: convolutions with kernels of their own at the edges, as products of matrices.

Which kernels a pixel has depends on whether it lies in the first row, the last, or between, and likewise for its
column: nine *kinds* of pixels. A program takes pixels of one kind, so the products of all of them are with the same
matrices, and it multiplies only those that are not zero there. One loop goes over kernel parts, taps and channels.
The pixel shuffle is how the picture is addressed. Sums over pixels, the gradients of kernels and biases, are partial
sums of slices that a second launch adds in a fixed order: no atomics, no autotuning, the same bits in every run.

Tensor cores multiply; sums are fp32. A float32 number is taken as the sum of two bfloat16 ones, to 2^-17 of it, and so
is a float16 one, exactly: bfloat16 has the range of float32, whereas float16 kernels would be subnormal (those of a
network are about 1e-4). Of the products of two sums the one of both low parts is left out. With float32 features the
products are of three TF32 ones each, to about 1e-6.

Floors for P = B h w pixels, C channels, N = 3 scale^2 outputs, features of e bytes. Bytes, each input and output once:
the convolution reads P C e + 900 N C (the kernels) and writes 4 P N; the gradient of the features reads 4 P N + 900 N C
and writes P C e; that of the kernels reads P C e + 4 P N and writes 900 N C. Each of the three is 50 P N C operations,
done twice with bfloat16 features (three times for their gradient, whose error so is its last rounding) and three times
with others. What taps share is read again from the L2 cache.
"""

# mypy: disable-error-code="no-untyped-def"

from collections.abc import Iterator
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from eco_kernels.tail import TAPS
from eco_kernels.tail.chain_kernel import compose as compose
from eco_kernels.tail.chain_kernel import compose_backward as compose_backward
from eco_kernels.triton_common import (
    BATCH,
    HR_PATCH,
    OPTIONS,
    POINTERS,
    Specialisation,
    launches_on,
    short_name,
    specialisation,
)

PIXELS = tl.constexpr(128)
"""Of the convolution: pixels of a program."""
STEP_OUTPUTS = 16
"""Of the gradient of the features: outputs of a step."""
COLUMNS = tl.constexpr(128)
"""Of the gradient of the kernels, as a matrix of taps and channels by outputs: what a program makes of the former."""
BIAS_PIXELS = tl.constexpr(64)
"""Of the gradient of the biases: pixels that are read at once."""
SUM_SLICES, SUM_VALUES = tl.constexpr(8), tl.constexpr(512)
"""Of the sum of partial sums: slices that are read at once, and values of a program."""
NUM_WARPS = 4
PROGRAMS = 384
"""About as many share the gradient of the kernels: a few on each multiprocessor, and few partial sums."""

_TAPS = tl.constexpr(TAPS)
_REACH = tl.constexpr(TAPS // 2)
_EDGE_TAPS = tl.constexpr(TAPS // 2 + 1)
_FAR = tl.constexpr(-(2**29))
"""A row so far outside that no tap reaches the features, and no sum of two passes 32 bits."""
_SIZES = ("batch", "height", "width")


@triton.jit
def in_parts(x):
    """Two bfloat16 whose sum is the fp32 `x` to 2^-17 of it. Rounding by whole numbers is faster than conversions."""
    high = ((x.to(tl.int32, bitcast=True) + 0x8000) & -0x10000).to(tl.float32, bitcast=True)
    return high.to(tl.bfloat16), (x - high).to(tl.bfloat16)


@triton.jit
def add_product(total, a, b, NARROW: tl.constexpr):
    """`total + a b` for two matrices, one of them of fp32.

    Of the first product at least one matrix is computed here, and has to be: where both come from loads that the
    compiler runs ahead with, several products into one sum are not ordered on sm_100 by Triton 3.6 and 3.7
    (https://github.com/triton-lang/triton/issues/10821).

    Args:
        NARROW: products of bfloat16 parts; else of TF32.
    """
    if not NARROW:
        total = tl.dot(a, b, total, input_precision="tf32x3")
    elif a.dtype == tl.bfloat16:
        b_high, b_low = in_parts(b)
        total = tl.dot(a, b_low, total)
        total = tl.dot(a, b_high, total)
    elif b.dtype == tl.bfloat16:
        a_high, a_low = in_parts(a)
        total = tl.dot(a_low, b, total)
        total = tl.dot(a_high, b, total)
    else:
        a_high, a_low = in_parts(a.to(tl.float32))
        b_high, b_low = in_parts(b.to(tl.float32))
        total = tl.dot(a_low, b_high, total)
        total = tl.dot(a_high, b_low, total)
        total = tl.dot(a_high, b_high, total)
    return total


@triton.jit
def extent(kind, size, EDGE: tl.constexpr, INNER_FIRST: tl.constexpr):
    """First place and number of places along an axis of a kind of pixels: 0 between the edges, 1 first, 2 last.

    Args:
        size: places of the axis.
        EDGE: how many are edge at each end; where that leaves none between them, all are first.
        INNER_FIRST: where kind 0 begins: `EDGE`, or 0 where it is all of the axis.
    """
    enough = size >= 2 * EDGE
    first = tl.where(kind == 0, INNER_FIRST, tl.where(kind == 1, 0, size - EDGE))
    inner = tl.where(enough, size - 2 * INNER_FIRST, 0)
    count = tl.where(kind == 0, inner, tl.where(enough, EDGE, tl.where(kind == 1, size, 0)))
    return first, count


@triton.jit
def tiles_of(kind, batch, height, width, SIZE, EDGE: tl.constexpr, INNER_FIRST: tl.constexpr):
    """How many tiles of `SIZE` pixels the pixels of a kind take."""
    _, rows = extent(kind // 3, height, EDGE, INNER_FIRST)
    _, columns = extent(kind % 3, width, EDGE, INNER_FIRST)
    return tl.cdiv(batch * rows * columns, SIZE)


@triton.jit
def find_tile(tile, batch, height, width, SIZE, EDGE: tl.constexpr, INNER_FIRST: tl.constexpr):
    """The kind of a tile's pixels, and its number among the tiles of that kind. Corners, which take longest, lead."""
    kind = 8
    passed = 0
    number = tile
    for behind in tl.static_range(8):
        count = tiles_of(8 - behind, batch, height, width, SIZE, EDGE, INNER_FIRST)
        passed += count
        beyond = tile >= passed
        kind -= beyond.to(tl.int32)
        number -= tl.where(beyond, count, 0)
    return kind, number


@triton.jit
def frame_of(kind, height, width, EDGE: tl.constexpr, INNER_FIRST: tl.constexpr):
    """Where the pixels of a kind lie: what `places` needs to find them without a division."""
    top, rows = extent(kind // 3, height, EDGE, INNER_FIRST)
    left, columns = extent(kind % 3, width, EDGE, INNER_FIRST)
    most = tl.full((), 0xFFFFFFFF, tl.uint32)
    return top, rows, most // rows.to(tl.uint32), left, columns, most // columns.to(tl.uint32)


@triton.jit
def divide(number, by, inverse):
    """Quotient and rest of numbers below 2^31; `inverse` is `(2^32 - 1) // by`."""
    quotient = tl.umulhi(number.to(tl.uint32), inverse).to(tl.int32)  # or one less
    rest = number - quotient * by
    less = rest >= by
    return quotient + less.to(tl.int32), tl.where(less, rest - by, rest)


@triton.jit
def places(index, frame, batch, height):
    """Line of the batch (`image height + row`), row and column of the pixels of a kind, and which of them are real.

    The row of those that are not is `_FAR`.
    """
    top, rows, per_row, left, columns, per_column = frame
    line, column = divide(index, columns, per_column)
    image, row = divide(line, rows, per_row)
    real = image < batch
    row += top
    return image * height + row, tl.where(real, row, _FAR), left + column, real


@triton.jit
def tap_of_pixel(entry, kind):
    """Part and tap along an axis, for pixels of a kind: those that lie inside the features, of both its parts."""
    tap = tl.where(kind == 0, entry, entry % _EDGE_TAPS + tl.where(kind == 1, _REACH, 0))
    return tl.where(entry < _EDGE_TAPS, 0, kind), tap


@triton.jit
def tap_to_feature(entry, kind):
    """Part and tap along an axis, for features of a kind: all of part 0, then those from the edge that it is near."""
    near = entry - _TAPS
    part = tl.where(entry < _TAPS, 0, tl.where(near < _EDGE_TAPS, kind, 2))
    tap = tl.where(entry < _TAPS, entry, near % _EDGE_TAPS + tl.where(part == 1, _REACH, 0))
    return part, tap


@triton.jit
def of_part(part, size):
    """First place and number of places along an axis where a part applies."""
    return tl.where(part == 2, size - 1, 0), tl.where(part == 0, size, 1)


@triton.jit
def within(place, first, count):
    """Whether places lie among `count` from `first` on: one comparison, of numbers without a sign."""
    return tl.cast(place - first, tl.uint32) < tl.cast(count, tl.uint32)


@triton.jit
def in_picture(line, column, width, SCALE: tl.constexpr):
    """Where the square of a pixel begins in the picture; 64-bit."""
    return line.to(tl.int64) * (width * (3 * SCALE * SCALE)) + column * (3 * SCALE)


@triton.jit
def in_square(output, width, SCALE: tl.constexpr):
    """Where an output, (row, column, colour) in one number, lies from there."""
    return output // (3 * SCALE) * (width * (3 * SCALE)) + output % (3 * SCALE)


@triton.jit(do_not_specialize=_SIZES)
def _convolve_kernel(
    features,
    kernels,
    biases,
    picture,
    batch,
    height,
    width,
    CHANNELS: tl.constexpr,
    SCALE: tl.constexpr,
    CHANNEL_BLOCK: tl.constexpr,
    OUTPUT_BLOCK: tl.constexpr,
):
    """The squares of the picture of 128 pixels of one kind.

    Args:
        features: fp32, fp16 or bf16 (batch, height, width, CHANNELS), dense.
        kernels: fp32 (3, 3, 3 SCALE^2, 5, 5, CHANNELS), dense.
        biases: fp32 (3, 3, 3 SCALE^2), dense.
        picture: fp32 (batch, SCALE height, SCALE width, 3), dense.
        batch, height, width: of the features.
        CHANNEL_BLOCK: channels of a step.
        OUTPUT_BLOCK: outputs of a program.
    """
    OUTPUTS: tl.constexpr = 3 * SCALE * SCALE
    CHANNEL_BLOCKS: tl.constexpr = (CHANNELS + CHANNEL_BLOCK - 1) // CHANNEL_BLOCK
    # Which pixels, and which outputs of them.
    kind, number = find_tile(tl.program_id(0), batch, height, width, PIXELS, 1, 1)
    index = number * PIXELS + tl.arange(0, PIXELS)
    line, row, column, real = places(index, frame_of(kind, height, width, 1, 1), batch, height)
    source = features + (line.to(tl.int64) * width + column) * CHANNELS
    output = tl.program_id(1) * OUTPUT_BLOCK + tl.arange(0, OUTPUT_BLOCK)
    wanted = output < OUTPUTS

    # The products: the pixels' parts of the kernels, their taps, their channels.
    row_kind, column_kind = kind // 3, kind % 3
    across = tl.where(column_kind == 0, _TAPS, 2 * _EDGE_TAPS)
    down = tl.where(row_kind == 0, _TAPS, 2 * _EDGE_TAPS)
    per_row = 65536 // across + 1  # so that a product is a quotient
    total = tl.zeros((OUTPUT_BLOCK, PIXELS), tl.float32)
    for step in range(down * across * CHANNEL_BLOCKS):
        entry = step // CHANNEL_BLOCKS
        row_entry = entry * per_row >> 16
        column_entry = entry - row_entry * across
        row_part, row_tap = tap_of_pixel(row_entry, row_kind)
        column_part, column_tap = tap_of_pixel(column_entry, column_kind)
        channel = step % CHANNEL_BLOCKS * CHANNEL_BLOCK + tl.arange(0, CHANNEL_BLOCK)
        matrix = (row_part * 3 + column_part) * OUTPUTS * (_TAPS * _TAPS) + row_tap * _TAPS + column_tap
        kernel = tl.load(
            kernels + matrix * CHANNELS + output[:, None] * (_TAPS * _TAPS * CHANNELS) + channel[None, :],
            mask=wanted[:, None] & (channel < CHANNELS)[None, :],
            other=0,
        )
        down_by, right_by = row_tap - _REACH, column_tap - _REACH
        inside = within(row + down_by, 0, height) & within(column + right_by, 0, width)
        x = tl.load(
            source[None, :] + ((down_by * width + right_by) * CHANNELS + channel)[:, None],
            mask=inside[None, :] & (channel < CHANNELS)[:, None],
            other=0,
        )
        total = add_product(total, kernel, x, features.dtype.element_ty != tl.float32)

    # The biases of the same parts; then shuffle.
    bias = tl.zeros((OUTPUT_BLOCK,), tl.float32)
    for part in tl.static_range(9):
        applies = ((part // 3 == 0) | (row_kind == part // 3)) & ((part % 3 == 0) | (column_kind == part % 3))
        bias += tl.load(biases + part * OUTPUTS + output, mask=wanted & applies, other=0)
    total += bias[:, None]
    target = picture + in_picture(line, column, width, SCALE)[None, :] + in_square(output, width, SCALE)[:, None]
    tl.store(target, total, mask=wanted[:, None] & real[None, :])


@triton.jit(do_not_specialize=_SIZES)
def _feature_gradient_kernel(
    grad,
    kernels,
    of_features,
    batch,
    height,
    width,
    CHANNELS: tl.constexpr,
    SCALE: tl.constexpr,
    CHANNEL_BLOCK: tl.constexpr,
    OUTPUT_BLOCK: tl.constexpr,
    FEATURES: tl.constexpr,
):
    """The gradient of a block of channels of features of one kind.

    Kinds are others than those of pixels: features up to two places from an edge meet the kernels of that edge.

    Args:
        grad: fp32 (batch, SCALE height, SCALE width, 3), dense.
        kernels: fp32 (3, 3, 3 SCALE^2, 5, 5, CHANNELS), dense.
        of_features: fp32, fp16 or bf16 (batch, height, width, CHANNELS), dense.
        batch, height, width: of the features.
        CHANNEL_BLOCK: channels of a program.
        OUTPUT_BLOCK: outputs of a step.
        FEATURES: features of a program.
    """
    OUTPUTS: tl.constexpr = 3 * SCALE * SCALE
    OUTPUT_BLOCKS: tl.constexpr = (OUTPUTS + OUTPUT_BLOCK - 1) // OUTPUT_BLOCK
    # Which features.
    kind, number = find_tile(tl.program_id(0), batch, height, width, FEATURES, _EDGE_TAPS, _EDGE_TAPS)
    index = number * FEATURES + tl.arange(0, FEATURES)
    frame = frame_of(kind, height, width, _EDGE_TAPS, _EDGE_TAPS)
    line, row, column, _ = places(index, frame, batch, height)
    source = grad + in_picture(line, column, width, SCALE)
    channel = tl.program_id(1) * CHANNEL_BLOCK + tl.arange(0, CHANNEL_BLOCK)

    # The products: the kernels' parts, their taps, their outputs. A part's gradient is that of its pixels.
    row_kind, column_kind = kind // 3, kind % 3
    across = tl.where(column_kind == 0, _TAPS, _TAPS + _EDGE_TAPS)
    across += tl.where((column_kind == 1) & (width < 2 * _EDGE_TAPS), _EDGE_TAPS, 0)
    down = tl.where(row_kind == 0, _TAPS, _TAPS + _EDGE_TAPS)
    down += tl.where((row_kind == 1) & (height < 2 * _EDGE_TAPS), _EDGE_TAPS, 0)
    per_row = 65536 // across + 1  # so that a product is a quotient
    total = tl.zeros((FEATURES, CHANNEL_BLOCK), tl.float32)
    for step in range(down * across * OUTPUT_BLOCKS):
        entry = step // OUTPUT_BLOCKS
        row_entry = entry * per_row >> 16
        column_entry = entry - row_entry * across
        row_part, row_tap = tap_to_feature(row_entry, row_kind)
        column_part, column_tap = tap_to_feature(column_entry, column_kind)
        output = step % OUTPUT_BLOCKS * OUTPUT_BLOCK + tl.arange(0, OUTPUT_BLOCK)
        down_by, right_by = _REACH - row_tap, _REACH - column_tap
        inside = within(row + down_by, *of_part(row_part, height))
        inside &= within(column + right_by, *of_part(column_part, width))
        there = down_by * (width * OUTPUTS) + right_by * (3 * SCALE)
        slope = tl.load(
            source[:, None] + (there + in_square(output, width, SCALE))[None, :],
            mask=inside[:, None] & (output < OUTPUTS)[None, :],
            other=0,
        )
        matrix = (row_part * 3 + column_part) * OUTPUTS * (_TAPS * _TAPS) + row_tap * _TAPS + column_tap
        kernel = tl.load(
            kernels + matrix * CHANNELS + output[:, None] * (_TAPS * _TAPS * CHANNELS) + channel[None, :],
            mask=(output < OUTPUTS)[:, None] & (channel < CHANNELS)[None, :],
            other=0,
        )
        total = add_product(total, slope, kernel, of_features.dtype.element_ty != tl.float32)

    # The places once more, of an index that the compiler does not know to be the same: no register held them meanwhile.
    index = (number + tl.minimum(batch, 0)) * FEATURES + tl.arange(0, FEATURES)
    line, _, column, real = places(index, frame, batch, height)
    target = of_features + ((line.to(tl.int64) * width + column) * CHANNELS)[:, None] + channel[None, :]
    tl.store(target, total.to(of_features.dtype.element_ty), mask=real[:, None] & (channel < CHANNELS)[None, :])


@triton.jit(do_not_specialize=(*_SIZES, "slice_pixels"))
def _kernel_gradient_kernel(
    grad,
    features,
    partials,
    bias_partials,
    batch,
    height,
    width,
    slice_pixels,
    CHANNELS: tl.constexpr,
    SCALE: tl.constexpr,
    OUTPUT_BLOCK: tl.constexpr,
    STEP_PIXELS: tl.constexpr,
):
    """What a slice of the pixels adds to the gradients: of a block of outputs, and 128 of taps and channels.

    The pixels of a part are those where it applies. Behind the programs of the taps comes one for the biases.

    Args:
        grad: fp32 (batch, SCALE height, SCALE width, 3), dense.
        features: fp32, fp16 or bf16 (batch, height, width, CHANNELS), dense.
        partials: fp32 (slices of all parts, 3 SCALE^2, 25 CHANNELS).
        bias_partials: fp32 (slices of all parts, 3 SCALE^2).
        batch, height, width: of the features.
        slice_pixels: a multiple of 64.
        OUTPUT_BLOCK: outputs of a program.
        STEP_PIXELS: pixels of a step, at most 64.
    """
    OUTPUTS: tl.constexpr = 3 * SCALE * SCALE
    ACROSS: tl.constexpr = _TAPS * _TAPS * CHANNELS
    # Which slice of which part, and which outputs.
    part_slice = tl.program_id(2)
    part, number = find_tile(part_slice, batch, height, width, slice_pixels, 1, 0)
    first = number * slice_pixels
    frame = frame_of(part, height, width, 1, 0)
    pixels = tl.minimum(slice_pixels, batch * frame[1] * frame[4] - first)
    output = tl.program_id(1) * OUTPUT_BLOCK + tl.arange(0, OUTPUT_BLOCK)
    wanted = output < OUTPUTS
    square = in_square(output, width, SCALE)

    if tl.program_id(0) < tl.num_programs(0) - 1:
        # The products: pixels are what is summed over.
        place = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        tap = place // CHANNELS
        down_by, right_by = tap // _TAPS - _REACH, tap % _TAPS - _REACH
        there = (down_by * width + right_by) * CHANNELS + place % CHANNELS
        down_by = tl.where(place < ACROSS, down_by, _FAR)
        total = tl.zeros((COLUMNS, OUTPUT_BLOCK), tl.float32)
        for start in range(0, pixels, STEP_PIXELS):
            index = first + start + tl.arange(0, STEP_PIXELS)
            line, row, column, real = places(index, frame, batch, height)
            slope = tl.load(
                grad + in_picture(line, column, width, SCALE)[:, None] + square[None, :],
                mask=real[:, None] & wanted[None, :],
                other=0,
            )
            row_there, column_there = row[None, :] + down_by[:, None], column[None, :] + right_by[:, None]
            inside = within(row_there, 0, height) & within(column_there, 0, width)
            x = tl.load(
                features + ((line.to(tl.int64) * width + column) * CHANNELS)[None, :] + there[:, None],
                mask=inside,
                other=0,
            )
            total = add_product(total, x, slope, features.dtype.element_ty != tl.float32)
        target = partials + (part_slice.to(tl.int64) * OUTPUTS + output[None, :]) * ACROSS + place[:, None]
        tl.store(target, total, mask=wanted[None, :] & (place < ACROSS)[:, None])
    else:
        # The biases: the gradient itself is summed.
        slopes = tl.zeros((BIAS_PIXELS, OUTPUT_BLOCK), tl.float32)
        for start in range(0, pixels, BIAS_PIXELS):
            index = first + start + tl.arange(0, BIAS_PIXELS)
            line, row, column, real = places(index, frame, batch, height)
            slopes += tl.load(
                grad + in_picture(line, column, width, SCALE)[:, None] + square[None, :],
                mask=real[:, None] & wanted[None, :],
                other=0,
            )
        tl.store(bias_partials + part_slice * OUTPUTS + output, tl.sum(slopes, axis=0), mask=wanted)


@triton.jit
def add_slices(source, target, part, block, first, end, VALUES: tl.constexpr):
    """Adds slices `first .. end` of a block of values in order, several of them on their way at once."""
    place = block * SUM_VALUES + tl.arange(0, SUM_VALUES)
    total = tl.zeros((SUM_VALUES,), tl.float32)
    for start in range(first, end, SUM_SLICES):
        for ahead in tl.static_range(SUM_SLICES):
            number = start + ahead
            mask = (place < VALUES) & (number < end)
            total += tl.load(source + number.to(tl.int64) * VALUES + place, mask=mask, other=0)
    tl.store(target + part * VALUES + place, total, mask=place < VALUES)


@triton.jit(do_not_specialize=(*_SIZES, "slice_pixels"))
def _sum_kernel(
    partials,
    bias_partials,
    of_kernels,
    of_biases,
    batch,
    height,
    width,
    slice_pixels,
    KERNEL_VALUES: tl.constexpr,
    BIAS_VALUES: tl.constexpr,
):
    """Adds the slices of a part, 512 values per program: first those of the kernels, then those of the biases.

    Args:
        partials: fp32 (slices of all parts, KERNEL_VALUES).
        bias_partials: fp32 (slices of all parts, BIAS_VALUES).
        of_kernels, of_biases: fp32 (9, KERNEL_VALUES) and (9, BIAS_VALUES).
        batch, height, width, slice_pixels: as in `_kernel_gradient_kernel`.
    """
    # Which slices; parts lie in the order of `find_tile`.
    part = tl.program_id(1)
    first = 0
    for other in tl.static_range(9):
        count = tiles_of(other, batch, height, width, slice_pixels, 1, 0)
        first += tl.where(other > part, count, 0)
    end = first + tiles_of(part, batch, height, width, slice_pixels, 1, 0)

    behind = tl.program_id(0) - tl.cdiv(KERNEL_VALUES, SUM_VALUES)
    if behind < 0:
        add_slices(partials, of_kernels, part, tl.program_id(0), first, end, KERNEL_VALUES)
    else:
        add_slices(bias_partials, of_biases, part, behind, first, end, BIAS_VALUES)


def convolve(features: Tensor, kernels: Tensor, biases: Tensor, scale: int) -> Tensor:
    """See `eco_kernels.tail.cpu.convolve`. One launch.

    Raises:
        ValueError: There are more pixels than 32-bit numbers count.
    """
    _check_size(features, scale)
    features = _dense(features)
    batch, channels, height, width = features.shape
    picture = torch.empty((batch, height * scale, width * scale, 3), dtype=torch.float32, device=features.device)
    outputs = _output_block(scale)
    grid = (_tiles(features, PIXELS.value, 1, 1), triton.cdiv(3 * scale**2, outputs))
    with launches_on(features.device):
        _convolve_kernel[grid](
            features,
            kernels.contiguous(),
            biases.contiguous(),
            picture,
            batch,
            height,
            width,
            CHANNELS=channels,
            SCALE=scale,
            CHANNEL_BLOCK=_channel_step(channels, features.dtype),
            OUTPUT_BLOCK=outputs,
            num_warps=NUM_WARPS,
            **OPTIONS,
        )
    return picture.permute(0, 3, 1, 2)


def convolve_backward(grad: Tensor, features: Tensor, kernels: Tensor, scale: int) -> tuple[Tensor, Tensor, Tensor]:
    """See `eco_kernels.tail.cpu.convolve_backward`. Three launches: one for the features, two for the others."""
    _check_size(features, scale)
    grad, features, kernels = _dense(grad.float()), _dense(features), kernels.contiguous()
    of_features = _feature_gradient(grad, features, kernels, scale)
    return of_features, *_kernel_gradient(grad, features, scale)


def _feature_gradient(grad: Tensor, features: Tensor, kernels: Tensor, scale: int) -> Tensor:
    batch, channels, height, width = features.shape
    of_features = torch.empty((batch, height, width, channels), dtype=features.dtype, device=features.device)
    block, size, edge = _channel_block(channels, 64), _feature_block(scale, features.dtype), _EDGE_TAPS.value
    grid = (_tiles(features, size, edge, edge), triton.cdiv(channels, block))
    with launches_on(features.device):
        _feature_gradient_kernel[grid](
            grad,
            kernels,
            of_features,
            batch,
            height,
            width,
            CHANNELS=channels,
            SCALE=scale,
            CHANNEL_BLOCK=block,
            OUTPUT_BLOCK=STEP_OUTPUTS,
            FEATURES=size,
            num_warps=NUM_WARPS,
            **OPTIONS,
        )
    return of_features.permute(0, 3, 1, 2)


def _kernel_gradient(grad: Tensor, features: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    batch, channels, height, width = features.shape
    outputs, across = 3 * scale**2, TAPS**2 * channels
    block = _output_block(scale)
    grid = (triton.cdiv(across, COLUMNS.value) + 1, triton.cdiv(outputs, block))
    wanted = max(1, PROGRAMS // (grid[0] * grid[1]))
    step = BIAS_PIXELS.value
    slice_pixels = max(4 * step, triton.cdiv(triton.cdiv(batch * height * width, wanted), step) * step)
    slices = _tiles(features, slice_pixels, 1, 0)
    partials, bias_partials, of_kernels, of_biases = (
        torch.empty(shape, dtype=torch.float32, device=features.device)
        for shape in (
            (slices, outputs, across),
            (slices, outputs),
            (3, 3, outputs, TAPS, TAPS, channels),
            (3, 3, outputs),
        )
    )
    sizes = (batch, height, width, slice_pixels)
    with launches_on(features.device):
        _kernel_gradient_kernel[(*grid, slices)](
            grad,
            features,
            partials,
            bias_partials,
            *sizes,
            CHANNELS=channels,
            SCALE=scale,
            OUTPUT_BLOCK=block,
            STEP_PIXELS=_pixel_step(features.dtype),
            num_warps=NUM_WARPS,
            **OPTIONS,
        )
        blocks = sum(triton.cdiv(values, SUM_VALUES.value) for values in (outputs * across, outputs))
        _sum_kernel[(blocks, 9)](
            partials,
            bias_partials,
            of_kernels,
            of_biases,
            *sizes,
            KERNEL_VALUES=outputs * across,
            BIAS_VALUES=outputs,
            num_warps=NUM_WARPS,
            **OPTIONS,
        )
    return of_kernels, of_biases


def _dense(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _tiles(features: Tensor, size: int, edge: int, inner_first: int) -> int:
    """How many tiles there are of all kinds of pixels, see `find_tile`."""
    batch, _, height, width = features.shape

    def counts(length: int) -> tuple[int, int, int]:
        return (length - 2 * inner_first, edge, edge) if length >= 2 * edge else (0, length, 0)

    return sum(triton.cdiv(batch * rows * columns, size) for rows, columns in product(counts(height), counts(width)))


def _check_size(features: Tensor, scale: int) -> None:
    """Pixels and offsets inside a few lines are 32-bit in the kernels; those of a line in the batch are 64-bit."""
    batch, channels, height, width = features.shape
    if batch * height * width > 2**30 or TAPS * width * max(channels, 3 * scale**2) >= 2**31:
        raise ValueError(f"features of shape {tuple(features.shape)} are too large; the kernels count in 32 bits")


def _channel_block(channels: int, most: int) -> int:
    return min(most, max(16, triton.next_power_of_2(channels)))


def _output_block(scale: int) -> int:
    return min(64, max(16, triton.next_power_of_2(3 * scale**2)))


# Blocks that leave room in the registers on every architecture.


def _channel_step(channels: int, dtype: torch.dtype) -> int:
    """Channels of a step of the convolution; three products of TF32 take more registers."""
    return _channel_block(channels, 16 if dtype == torch.float32 else 32)


def _feature_block(scale: int, dtype: torch.dtype) -> int:
    """Features of a program that makes their gradient; where loads are of single values, addresses take more."""
    return 64 if scale % 2 or dtype == torch.float32 else 128


def _pixel_step(dtype: torch.dtype) -> int:
    """Pixels of a step of the kernels' gradient: fewer where the features are in parts too."""
    return 32 if dtype == torch.bfloat16 else 16


def specialisations() -> Iterator[Specialisation]:
    """All kernels for the networks' widths, at every scale, for every type of features."""
    for channels, scale, dtype in product((32, 64, 256), (2, 3, 4), (torch.bfloat16, torch.float16, torch.float32)):
        outputs, pixels = 3 * scale**2, BATCH * (HR_PATCH // scale) ** 2
        element, across = dtype.itemsize, TAPS**2 * channels
        types = {
            "features": POINTERS[dtype],
            "of_features": POINTERS[dtype],
            **dict.fromkeys(("kernels", "biases", "picture", "grad", "partials", "bias_partials"), "*fp32"),
        }
        shape = {"CHANNELS": channels, "SCALE": scale}
        rows = {"OUTPUT_BLOCK": _output_block(scale)}
        size, block = _feature_block(scale, dtype), _channel_block(channels, 64)
        for kernel, constexprs, values, moved in (
            (
                _convolve_kernel,
                shape | rows | {"CHANNEL_BLOCK": _channel_step(channels, dtype)},
                PIXELS.value * outputs,
                pixels * (channels * element + 4 * outputs) + 36 * outputs * (across + 1),
            ),
            (
                _feature_gradient_kernel,
                shape | {"CHANNEL_BLOCK": block, "OUTPUT_BLOCK": STEP_OUTPUTS, "FEATURES": size},
                size * block,
                pixels * (channels * element + 4 * outputs) + 36 * outputs * across,
            ),
            (
                _kernel_gradient_kernel,
                shape | rows | {"STEP_PIXELS": _pixel_step(dtype)},
                outputs * COLUMNS.value,
                pixels * (channels * element + 4 * outputs) + 36 * outputs * (across + 1),
            ),
        ):
            yield specialisation(
                "linear_tail",
                "-".join(("tail", _NAMES[kernel], str(channels), f"x{scale}", short_name(dtype))),
                kernel,
                types,
                constexprs,
                num_warps=NUM_WARPS,
                outputs=values,
                bytes=moved,
            )
    for channels, scale in product((32, 64, 256), (2, 3, 4)):
        outputs, across = 3 * scale**2, TAPS**2 * channels
        names = ("partials", "bias_partials", "of_kernels", "of_biases")
        yield specialisation(
            "linear_tail",
            f"tail-sum-{channels}-x{scale}",
            _sum_kernel,
            dict.fromkeys(names, "*fp32"),
            {"KERNEL_VALUES": outputs * across, "BIAS_VALUES": outputs},
            num_warps=NUM_WARPS,
            outputs=SUM_VALUES.value,
            bytes=36 * outputs * (across + 1),
        )


_NAMES = {_convolve_kernel: "picture", _feature_gradient_kernel: "features", _kernel_gradient_kernel: "kernels"}
