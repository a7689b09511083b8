"""The tail's kernels from the weights, and back, as Triton kernels: two launches for a convolution, and three.

The arithmetic is that of `chain`. *Taps* are those of the kernels behind a shuffle that are not zero for all weights,
with channels last: `(outputs, taps, taps, C)`, where outputs are (row, column, colour) of `side^2` pixels; of the last
convolution it is the weight. What they are multiplied with, a weight in channels_last, is a matrix too, so the
products `(outputs, taps, taps, factor, factor, 3, 3, C_in)` and both their gradients are plain products of matrices, of
three TF32 ones each and summed up in fp32. The sums of products that meet an output, and back from there, are gathered:
a program knows from its place which ones there are, at most five along an axis.
"""

# mypy: disable-error-code="no-untyped-def"

import math
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from eco_kernels.tail import TAPS, factor_of, live_taps, scale_of
from eco_kernels.tail.chain import Step, axis_of
from eco_kernels.triton_common import OPTIONS, Specialisation, launches_on, specialisation

ROWS, COLUMNS, STEP = tl.constexpr(16), tl.constexpr(64), tl.constexpr(32)
"""Of a product: what a program makes of it, and how many terms it reads at once."""
NARROW_ROWS, NARROW_COLUMNS = tl.constexpr(16), tl.constexpr(16)
"""What a program makes of a product with many terms and few results."""
PARTS, PART_STEP = tl.constexpr(4), tl.constexpr(32)
"""Such a product is summed up in parts, one by each warp; and how many terms of a part are read at once."""
PLACES, CHANNELS = 32, 64
"""Of what is gathered: places and most channels of a program."""
BIASES, BIAS_STEP = tl.constexpr(16), tl.constexpr(16)
"""Biases of a program, and how many terms of them it reads at once."""
NUM_WARPS = 4


class Tables(NamedTuple):
    """Along one axis, where the sums of products are made of: constants, `(places, 1 + slots)` int32.

    The first of a line is where a sum goes, the others are what it is made of: twice an offset in channels, and 1 more
    for what is subtracted; -1 is nothing. Those of a row and of a column are added.
    """

    rows: Tensor
    columns: Tensor


class Shape(NamedTuple):
    """What a link looks like but for its channels."""

    factor: int
    side: int
    """Pixels of what follows the shuffle, per side."""
    behind: int
    """Shuffles behind this one."""
    first: bool
    """Whether it is the first convolution, so that all taps of its kernels are wanted, live or not."""

    @property
    def live(self) -> int:
        """Live taps of what follows."""
        return len(live_taps(self.behind))

    @property
    def live_after(self) -> int:
        """Those of the result."""
        return len(live_taps(self.behind + 1))

    @property
    def outputs(self) -> int:
        """Of what follows."""
        return 3 * self.side**2

    def result(self, channels: int) -> tuple[int, ...]:
        """The shape of the kernels or of their taps."""
        outputs = self.outputs * self.factor**2
        if self.first:
            return 3, 3, outputs, TAPS, TAPS, channels
        return outputs, self.live_after, self.live_after, channels


class Link(NamedTuple):
    """One convolution before a shuffle, with what follows it."""

    weight: Tensor
    """`(C_out, 3, 3, C_in)`, dense."""
    bias: Tensor
    taps: Tensor
    """`(outputs, taps, taps, C)`."""
    biases: Tensor
    """`(kinds^2, outputs)`: 3 kinds, or 1 of the last convolution."""
    shape: Shape


@triton.jit
def make_product(a, b, target, row, block, rows, terms, A_ROW, A_TERM, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Some rows and a block of columns of the product of `a`, of any strides, with `b` of `WIDTH` columns."""
    column = block * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, terms, STEP):
        term = start + tl.arange(0, STEP)
        left = tl.load(
            a + (row * A_ROW)[:, None] + (term * A_TERM)[None, :],
            mask=(row < rows)[:, None] & (term < terms)[None, :],
            other=0,
        )
        right = tl.load(
            b + (term * WIDTH)[:, None] + column[None, :],
            mask=(term < terms)[:, None] & (column < WIDTH)[None, :],
            other=0,
        )
        total = tl.dot(left, right, total, input_precision="tf32x3")
    mask = (row < rows)[:, None] & (column < WIDTH)[None, :]
    tl.store(target + (row * WIDTH)[:, None] + column[None, :], total, mask=mask)


@triton.jit(do_not_specialize=("count",))
def _product_kernel(
    taps,
    wide,
    narrow,
    of_wide,
    of_narrow,
    count,
    CHANNELS: tl.constexpr,
    WIDE: tl.constexpr,
    NARROW: tl.constexpr,
    NARROW_BLOCK: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """The product of all taps, as a matrix, with a wide one, and in the last block of columns with a narrow one.

    Args:
        taps: fp32 (count, CHANNELS).
        wide, narrow: fp32 (CHANNELS, WIDE) and (CHANNELS, NARROW), a weight and a bias; where TRANSPOSED (count, WIDE)
            and (count, NARROW), gradients of products with them.
        of_wide, of_narrow: fp32, the products: (count, WIDE) and (count, NARROW); where TRANSPOSED (CHANNELS, ...).
        count: how many taps there are.
        NARROW_BLOCK: at least NARROW.
        TRANSPOSED: whether the product is with the transposed matrix of taps.
    """
    if TRANSPOSED:
        rows, terms, A_ROW, A_TERM = CHANNELS, count, 1, CHANNELS
    else:
        rows, terms, A_ROW, A_TERM = count, CHANNELS, CHANNELS, 1
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    if tl.program_id(0) < tl.num_programs(0) - 1:
        make_product(taps, wide, of_wide, row, tl.program_id(0), rows, terms, A_ROW, A_TERM, WIDE, COLUMNS)
    else:
        make_product(taps, narrow, of_narrow, row, 0, rows, terms, A_ROW, A_TERM, NARROW, NARROW_BLOCK)


@triton.jit(do_not_specialize=("count",))
def _tap_gradient_kernel(
    of_products,
    of_met,
    weight,
    bias,
    of_taps,
    count,
    CHANNELS: tl.constexpr,
    WIDE: tl.constexpr,
    NARROW: tl.constexpr,
):
    """The gradient of the taps: those of their products times the weight and the bias. The warps share the terms.

    Args:
        of_products, of_met: fp32 (count, WIDE) and (count, NARROW), gradients of products with weight and bias.
        weight, bias: fp32 (CHANNELS, WIDE) and (CHANNELS, NARROW).
        of_taps: fp32 (count, CHANNELS).
        count: how many taps there are.
    """
    row = tl.program_id(1) * NARROW_ROWS + tl.arange(0, NARROW_ROWS)
    column = tl.program_id(0) * NARROW_COLUMNS + tl.arange(0, NARROW_COLUMNS)
    total = tl.zeros((PARTS, NARROW_ROWS, NARROW_COLUMNS), tl.float32)
    for start in range(0, WIDE, PARTS * PART_STEP):
        term = start + (tl.arange(0, PARTS) * PART_STEP)[:, None, None]
        across, down = term + tl.arange(0, PART_STEP)[None, None, :], term + tl.arange(0, PART_STEP)[None, :, None]
        left = tl.load(
            of_products + row[None, :, None] * WIDE + across,
            mask=(row < count)[None, :, None] & (across < WIDE),
            other=0,
        )
        right = tl.load(
            weight + column[None, None, :] * WIDE + down,
            mask=(column < CHANNELS)[None, None, :] & (down < WIDE),
            other=0,
        )
        total = tl.dot(left, right, total, input_precision="tf32x3")
    found = tl.sum(total, axis=0)
    for term in tl.static_range(NARROW):
        left = tl.load(of_met + row * NARROW + term, mask=row < count, other=0)
        right = tl.load(bias + column * NARROW + term, mask=column < CHANNELS, other=0)
        found += left[:, None] * right[None, :]
    target = of_taps + (row * CHANNELS)[:, None] + column[None, :]
    tl.store(target, found, mask=(row < count)[:, None] & (column < CHANNELS)[None, :])


@triton.jit
def fine_output(row_sub, column_sub, output, FACTOR: tl.constexpr, SIDE: tl.constexpr):
    """Which output of a coarse pixel an output is of its fine pixel; what follows the shuffle has `SIDE^2` pixels."""
    LINE: tl.constexpr = 3 * SIDE
    return ((row_sub * SIDE + output // LINE) * FACTOR + column_sub) * LINE + output % LINE


@triton.jit
def result_at(kind, output, FACTOR: tl.constexpr, SIDE: tl.constexpr):
    """Where a bias of the result lies: `kind` is (kind, kind, sub, sub) in one number."""
    fine = fine_output(kind // FACTOR % FACTOR, kind % FACTOR, output, FACTOR, SIDE)
    return kind // (FACTOR * FACTOR) * (3 * SIDE * SIDE * FACTOR * FACTOR) + fine


@triton.jit
def sum_biases(
    matrix,
    met,
    biases,
    result_biases,
    number,
    FACTOR: tl.constexpr,
    SIDE: tl.constexpr,
    SEEN: tl.constexpr,
    TERMS: tl.constexpr,
    OUTPUT_BLOCK: tl.constexpr,
):
    """Some biases of the result: sums of what the taps meet and of biases behind the shuffle. See `_gather_kernel`."""
    RESULTS: tl.constexpr = 9 * FACTOR * FACTOR
    OUTPUTS: tl.constexpr = 3 * SIDE * SIDE
    output = tl.arange(0, OUTPUT_BLOCK)
    within = (output < OUTPUTS)[None, :]
    bias = tl.zeros((BIASES, OUTPUT_BLOCK), tl.float32)
    for start in range(0, TERMS, BIAS_STEP):
        term = start + tl.arange(0, BIAS_STEP)
        real = (number < RESULTS)[:, None] & (term < TERMS)[None, :]
        factor = tl.load(matrix + number[:, None] * TERMS + term[None, :], mask=real, other=0)
        seen, own = (term < SEEN)[:, None], ((term >= SEEN) & (term < TERMS))[:, None]
        value = tl.load(met + output[None, :] * SEEN + term[:, None], mask=seen & within, other=0)
        value += tl.load(biases + (term - SEEN)[:, None] * OUTPUTS + output[None, :], mask=own & within, other=0)
        bias = tl.dot(factor, value, bias, input_precision="tf32x3")
    at = result_at(number[:, None], output[None, :], FACTOR, SIDE)
    tl.store(result_biases + at, bias, mask=(number < RESULTS)[:, None] & within)


@triton.jit
def sum_bias_gradients(
    matrix,
    met,
    biases,
    result_biases,
    number,
    FACTOR: tl.constexpr,
    SIDE: tl.constexpr,
    SEEN: tl.constexpr,
    TERMS: tl.constexpr,
    OUTPUT_BLOCK: tl.constexpr,
):
    """The gradients of what the taps meet and of biases behind the shuffle: sums over all biases of the result."""
    RESULTS: tl.constexpr = 9 * FACTOR * FACTOR
    OUTPUTS: tl.constexpr = 3 * SIDE * SIDE
    output = tl.arange(0, OUTPUT_BLOCK)
    within = (output < OUTPUTS)[None, :]
    bias = tl.zeros((BIASES, OUTPUT_BLOCK), tl.float32)
    for start in range(0, RESULTS, BIAS_STEP):
        kind = start + tl.arange(0, BIAS_STEP)
        real = (number < TERMS)[:, None] & (kind < RESULTS)[None, :]
        factor = tl.load(matrix + kind[None, :] * TERMS + number[:, None], mask=real, other=0)
        at = result_at(kind[:, None], output[None, :], FACTOR, SIDE)
        value = tl.load(result_biases + at, mask=(kind < RESULTS)[:, None] & within, other=0)
        bias = tl.dot(factor, value, bias, input_precision="tf32x3")
    seen, own = (number < SEEN)[:, None], ((number >= SEEN) & (number < TERMS))[:, None]
    tl.store(met + output[None, :] * SEEN + number[:, None], bias, mask=seen & within)
    tl.store(biases + (number - SEEN)[:, None] * OUTPUTS + output[None, :], bias, mask=own & within)


@triton.jit
def _gather_kernel(
    source,
    target,
    row_table,
    column_table,
    matrix,
    met,
    biases,
    result_biases,
    CHANNELS: tl.constexpr,
    FACTOR: tl.constexpr,
    SIDE: tl.constexpr,
    SEEN: tl.constexpr,
    TERMS: tl.constexpr,
    PLACES: tl.constexpr,
    SLOTS: tl.constexpr,
    PRODUCT_UNIT: tl.constexpr,
    RESULT_UNIT: tl.constexpr,
    OUTPUT_BLOCK: tl.constexpr,
    PLACE_BLOCK: tl.constexpr,
    CHANNEL_BLOCK: tl.constexpr,
    BACKWARD: tl.constexpr,
):
    """Kernels from products, or the gradients of products from those of kernels; and behind them, biases.

    Args:
        source, target: fp32, products `(outputs, taps, taps, FACTOR, FACTOR, 3, 3, CHANNELS)` and kernels, taps of
            them or all; where BACKWARD the other way round.
        row_table, column_table: int32 (PLACES, 1 + SLOTS), see `Tables`.
        matrix: fp32 (9 FACTOR^2, TERMS), what biases are made of: of the taps with that of the convolution, and behind.
        met: fp32 (outputs, SEEN), the taps with the convolution's bias.
        biases: fp32 (TERMS - SEEN, outputs), those behind the shuffle.
        result_biases: fp32 (9, FACTOR^2 outputs). Where BACKWARD, it is read and the two before are made: gradients.
        SIDE: of what follows the shuffle; its outputs are 3 SIDE^2.
        PRODUCT_UNIT, RESULT_UNIT: in channels, how far outputs of products and of kernels lie apart.
        OUTPUT_BLOCK: at least 3 SIDE^2.
        PLACE_BLOCK, CHANNEL_BLOCK: of a program; places are those of rows, columns and outputs.
    """
    OUTPUTS: tl.constexpr = 3 * SIDE * SIDE
    COUNT: tl.constexpr = PLACES * PLACES * OUTPUTS
    BLOCKS: tl.constexpr = (COUNT + PLACE_BLOCK - 1) // PLACE_BLOCK
    if tl.program_id(0) < BLOCKS:
        index = tl.program_id(0) * PLACE_BLOCK + tl.arange(0, PLACE_BLOCK)
        output, there = index % OUTPUTS, index < COUNT
        row = row_table + index // OUTPUTS // PLACES * (1 + SLOTS)
        column = column_table + index // OUTPUTS % PLACES * (1 + SLOTS)
        channel = tl.program_id(1) * CHANNEL_BLOCK + tl.arange(0, CHANNEL_BLOCK)
        fine, coarse = fine_output(0, 0, output, FACTOR, SIDE) * RESULT_UNIT, output * PRODUCT_UNIT
        if BACKWARD:
            begin, end = fine, coarse
        else:
            begin, end = coarse, fine
        total = tl.zeros((PLACE_BLOCK, CHANNEL_BLOCK), tl.float32)
        for row_slot in range(SLOTS):
            down = tl.load(row + 1 + row_slot, mask=there, other=-1)
            for column_slot in tl.static_range(SLOTS):
                across = tl.load(column + 1 + column_slot, mask=there, other=-1)
                at = (begin + (down >> 1) + (across >> 1)) * CHANNELS
                value = tl.load(
                    source + at[:, None] + channel[None, :],
                    mask=((down >= 0) & (across >= 0))[:, None] & (channel < CHANNELS)[None, :],
                    other=0,
                )
                total += value * (1 - 2 * ((down ^ across) & 1)).to(tl.float32)[:, None]
        down, across = tl.load(row, mask=there, other=-1), tl.load(column, mask=there, other=-1)
        at = (end + (down >> 1) + (across >> 1)) * CHANNELS
        there = (down >= 0) & (across >= 0)
        tl.store(target + at[:, None] + channel[None, :], total, mask=there[:, None] & (channel < CHANNELS)[None, :])
    elif tl.program_id(1) == 0:
        number = (tl.program_id(0) - BLOCKS) * BIASES + tl.arange(0, BIASES)
        if BACKWARD:
            sum_bias_gradients(matrix, met, biases, result_biases, number, FACTOR, SIDE, SEEN, TERMS, OUTPUT_BLOCK)
        else:
            sum_biases(matrix, met, biases, result_biases, number, FACTOR, SIDE, SEEN, TERMS, OUTPUT_BLOCK)


def compose(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """See `eco_kernels.tail.chain.compose`. Two launches for each convolution before a shuffle."""
    with launches_on(weights[0].device):
        return _before(_links(weights, biases)[-1])


def compose_backward(
    of_kernels: Tensor, of_biases: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> list[Tensor]:
    """See `eco_kernels.tail.chain.compose_backward`.

    Three launches for each convolution before a shuffle, and two that make anew what follows one, but for the last.
    """
    of_weights, of_own = [], []
    result, result_biases = of_kernels.contiguous(), of_biases.contiguous()
    with launches_on(weights[0].device):
        for link in reversed(_links(weights, biases)):
            result, result_biases, of_weight, of_bias = _before_backward(link, result, result_biases)
            of_weights.append(of_weight)
            of_own.append(of_bias)
    return [weight.permute(0, 3, 1, 2) for weight in (*of_weights, result)] + [*of_own, result_biases.flatten()]


def _links(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[Link]:
    """From the last convolution before a shuffle to the first."""
    dense = [weight.permute(0, 2, 3, 1).contiguous() for weight in weights]
    taps, following = dense[-1], biases[-1].contiguous()
    links: list[Link] = []
    for number in reversed(range(len(weights) - 1)):
        if links:
            taps, following = _before(links[-1])
        factor = factor_of(weights[number].shape, weights[number + 1].shape)
        side = scale_of([weight.shape for weight in weights[number + 1 :]])
        shape = Shape(factor, side, len(links), number == 0)
        links.append(Link(dense[number], biases[number].contiguous(), taps, following, shape))
    return links


def _before(link: Link) -> tuple[Tensor, Tensor]:
    """Taps, or at last kernels, and biases of the map that begins with the convolution of the link."""
    outputs = link.shape.outputs * link.shape.factor**2
    products, met = _product(link, link.weight, link.bias, transposed=False)
    result = _empty(link.shape.result(link.weight.shape[-1]), link.taps)
    biases = _empty((3, 3, outputs), link.taps)
    _gather(link, products, result, met, link.biases, biases, backward=False)
    return result, biases


def _before_backward(link: Link, of_result: Tensor, of_biases: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the link's `taps` and `biases`, and of its convolution's weight and bias."""
    inner = link.taps.shape[-1]
    count, wide, narrow = link.taps.numel() // inner, link.weight.numel() // inner, link.shape.factor**2
    of_products, of_met = _empty((count, wide), link.taps), _empty((count, narrow), link.taps)
    of_taps, of_earlier_biases = _empty(link.taps.shape, link.taps), _empty(link.biases.shape, link.taps)
    _gather(link, of_result, of_products, of_met, of_earlier_biases, of_biases, backward=True)
    of_weight, of_bias = _product(link, of_products, of_met, transposed=True)
    _tap_gradient_kernel[(triton.cdiv(inner, NARROW_COLUMNS.value), triton.cdiv(count, NARROW_ROWS.value))](
        of_products,
        of_met,
        link.weight,
        link.bias,
        of_taps,
        count,
        CHANNELS=inner,
        WIDE=wide,
        NARROW=narrow,
        num_warps=NUM_WARPS,
        **OPTIONS,
    )
    return of_taps, of_earlier_biases, of_weight, of_bias


def _gather(
    link: Link, source: Tensor, target: Tensor, met: Tensor, biases: Tensor, result_biases: Tensor, *, backward: bool
) -> None:
    """See `_gather_kernel`."""
    constants = _gather_constants(link.shape, link.weight.shape[-1], backward)
    matrix, *tables = _constants(link.shape, link.weight.device)
    places, terms = constants["PLACES"], constants["TERMS"] if backward else 9 * link.shape.factor**2
    blocks = triton.cdiv(places**2 * link.shape.outputs, constants["PLACE_BLOCK"])
    grid = (blocks + triton.cdiv(terms, BIASES.value), triton.cdiv(constants["CHANNELS"], constants["CHANNEL_BLOCK"]))
    _gather_kernel[grid](
        source,
        target,
        *tables[backward],
        matrix,
        met,
        biases,
        result_biases,
        **constants,
        num_warps=NUM_WARPS,
        **OPTIONS,
    )


def _product(link: Link, wide: Tensor, narrow: Tensor, *, transposed: bool) -> tuple[Tensor, Tensor]:
    """Products of all taps with weight and bias; transposed the gradients of both, from those of the products."""
    inner = link.taps.shape[-1]
    count, across, few = link.taps.numel() // inner, link.weight.numel() // inner, link.shape.factor**2
    sizes = (link.weight.shape, link.bias.shape) if transposed else ((count, across), (count, few))
    of_wide, of_narrow = (_empty(size, link.taps) for size in sizes)
    rows = inner if transposed else count
    _product_kernel[(triton.cdiv(across, COLUMNS.value) + 1, triton.cdiv(rows, ROWS.value))](
        link.taps,
        wide,
        narrow,
        of_wide,
        of_narrow,
        count,
        CHANNELS=inner,
        WIDE=across,
        NARROW=few,
        NARROW_BLOCK=_narrow_block(few),
        TRANSPOSED=transposed,
        num_warps=NUM_WARPS,
        **OPTIONS,
    )
    return of_wide, of_narrow


def _narrow_block(narrow: int) -> int:
    """Columns of a product with few: 16 at least."""
    return max(16, triton.next_power_of_2(narrow))


def _empty(shape: Sequence[int], like: Tensor) -> Tensor:
    return torch.empty(tuple(shape), dtype=torch.float32, device=like.device)


@cache
def _constants(shape: Shape, device: torch.device) -> tuple[Tensor, Tables, Tables]:
    """The matrix of the biases, and the tables of both directions; copied to the device once."""
    axis = axis_of(shape.factor, shape.behind, device, torch.float32)
    forward, backward = (
        Tables(*(_table(shape, axis.steps, row, backward).to(device) for row in (True, False)))
        for backward in (False, True)
    )
    return torch.cat([axis.seen, axis.own], 1), forward, backward


def _table(shape: Shape, steps: Sequence[Step], row: bool, backward: bool) -> Tensor:
    """See `Tables`."""
    factor, side, after = shape.factor, shape.side, shape.live_after
    products, results = {}, {}
    for tap, fine, before in product(range(shape.live), range(factor), range(3)):
        unit, across, down = (shape.live, factor, 3) if row else (1, 1, 1)
        products[tap, fine, before] = 9 * (factor**2 * unit * tap + across * fine) + down * before
    wanted = product(range(3), range(TAPS)) if shape.first else live_taps(shape.behind + 1)
    for number, (kind, place) in enumerate(wanted):
        for sub in range(factor):
            output = 3 * side * sub * (factor * side if row else 1)
            if shape.first:
                output += shape.outputs * factor**2 * kind * (3 if row else 1)
                results[kind, sub, place] = TAPS**2 * output + place * (TAPS if row else 1)
            else:
                results[kind, sub, place] = after**2 * output + number * (after if row else 1)
    sources, targets = (results, products) if backward else (products, results)
    lines = {key: [2 * offset] for key, offset in targets.items()}
    for step, before in product(steps, range(3)):
        ends = (step.tap, step.fine, before), (step.kind, step.sub, step.first + before)
        source, target = ends[::-1] if backward else ends
        if source in sources and target in lines:
            lines[target].append(2 * sources[source] + (step.sign < 0))
    length = 1 + _slots(shape, backward)
    return torch.tensor([line + [-1] * (length - len(line)) for line in lines.values()], dtype=torch.int32)


def _slots(shape: Shape, backward: bool) -> int:
    """What a sum is made of at most, along an axis: a product is in that of its kind, and in that of an edge."""
    return 2 if backward else TAPS if shape.behind else 3


def _gather_constants(shape: Shape, channels: int, backward: bool) -> dict[str, int]:
    factor, live = shape.factor, shape.live
    seen = (live * factor) ** 2
    places = 3 * live if backward else 3 * TAPS if shape.first else shape.live_after
    return {
        "CHANNELS": channels,
        "FACTOR": factor,
        "SIDE": shape.side,
        "SEEN": seen,
        "TERMS": seen + (9 if shape.behind else 1),
        "PLACES": factor * places,
        "SLOTS": _slots(shape, backward),
        "PRODUCT_UNIT": 9 * seen,
        "RESULT_UNIT": TAPS**2 if shape.first else shape.live_after**2,
        "OUTPUT_BLOCK": _narrow_block(shape.outputs),
        "PLACE_BLOCK": PLACES,
        "CHANNEL_BLOCK": min(CHANNELS, triton.next_power_of_2(channels)),
        "BACKWARD": backward,
    }


def specialisations() -> Iterator[Specialisation]:
    """All kernels for the networks' widths: of links with a factor of 2 and 3, and of both links of x4."""
    for channels in (32, 64, 256):
        for factor in (2, 3):
            yield from _product_specialisations(channels, factor)
        for name, shape in LINKS.items():
            for backward in (False, True):
                constants = _gather_constants(shape, channels, backward)
                sums = constants["PLACES"] ** 2 * shape.outputs * channels
                made = shape.outputs * constants["PRODUCT_UNIT"] * channels
                yield specialisation(
                    "linear_tail",
                    f"link-{'spread' if backward else 'gather'}-{channels}-{name}",
                    _gather_kernel,
                    {"row_table": "*i32", "column_table": "*i32"} | _floats(_gather_kernel, constants),
                    constants,
                    num_warps=NUM_WARPS,
                    outputs=PLACES * constants["CHANNEL_BLOCK"],
                    bytes=4 * (sums + (math.prod(shape.result(channels)) if backward else made)),
                )


LINKS = {
    "x2": Shape(2, 1, 0, True),
    "x3": Shape(3, 1, 0, True),
    "x4": Shape(2, 1, 0, False),
    "x4-first": Shape(2, 2, 1, True),
}
"""Those of the networks: of x4 the last one, then the first."""


def _product_specialisations(channels: int, factor: int) -> Iterator[Specialisation]:
    """As the largest link has them."""
    count, narrow = (588 if factor == 2 else 27), factor**2
    wide = 9 * narrow * channels
    shape = {"CHANNELS": channels, "WIDE": wide, "NARROW": narrow}
    block = {"NARROW_BLOCK": _narrow_block(narrow)}
    moved = 4 * (count + channels) * (wide + narrow) + 4 * count * channels
    for name, kernel, more, outputs in (
        ("products", _product_kernel, block | {"TRANSPOSED": False}, ROWS.value * COLUMNS.value),
        ("weights", _product_kernel, block | {"TRANSPOSED": True}, ROWS.value * COLUMNS.value),
        ("taps", _tap_gradient_kernel, {}, NARROW_ROWS.value * NARROW_COLUMNS.value),
    ):
        yield specialisation(
            "linear_tail",
            f"link-{name}-{channels}-x{factor}",
            kernel,
            _floats(kernel, shape | more),
            shape | more,
            num_warps=NUM_WARPS,
            outputs=outputs,
            bytes=moved,
        )


def _floats(kernel: Any, constants: dict[str, Any]) -> dict[str, str]:
    """The arguments that point to fp32: all but the tables and the count."""
    others = {*constants, "count", "row_table", "column_table"}
    return {name: "*fp32" for name in kernel.arg_names if name not in others}
