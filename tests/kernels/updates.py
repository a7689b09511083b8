"""What the tests of the update share: buffers like a network's, and how near they must be to float64."""

import math

import torch
from torch import Tensor

from eco_kernels import Flat, Judgement, Segments, first_blocks
from eco_kernels.update import BLOCK

SIZES = (1, 1500, 1024, 37, 3 * 1024 + 1)
"""Of the tensors: less than a block, exactly one, several."""


def gaps(sizes: tuple[int, ...] = SIZES) -> Tensor:
    """True where no tensor is."""
    first = first_blocks(sizes)
    result = torch.ones(first[-1] * BLOCK, dtype=torch.bool)
    for start, size in zip(first, sizes, strict=False):
        result[start * BLOCK : start * BLOCK + size] = False
    return result


def flat(*, average: bool = False, low: torch.dtype | None = None, seed: int = 0, size: float = 1.0) -> Flat:
    """Random buffers with zeros in the gaps; gradients of about `size`. The second tensor is zero, as a fresh bias."""
    generator, empty, first = torch.Generator().manual_seed(seed), gaps(), first_blocks(SIZES)

    def draw(scale: float) -> Tensor:
        return (scale * torch.randn(len(empty), generator=generator)).masked_fill_(empty, 0.0)

    weights, gradients, mean, square, mixed = draw(0.1), draw(size), draw(0.1 * size), draw(0.1 * size).square(), draw(0.1)
    weights[first[1] * BLOCK : first[2] * BLOCK] = 0.0
    return Flat(weights, gradients, mean, square, mixed if average else None, None if low is None else weights.to(low))


def clone(buffers: Flat) -> Flat:
    return Flat(*(None if each is None else each.clone() for each in buffers))


def segments() -> Segments:
    return Segments.of(SIZES)


def state(*, last: float = math.inf, scale: float | None = None, steps: float = 6.0, good: int = 0) -> Judgement:
    """As after some updates, with what is only put out far from what it will be."""
    result = Judgement.fresh(last=last, scale=scale)
    for tensor, value in ((result.skipped, 3), (result.in_a_row, 2), (result.steps, steps)):
        tensor.fill_(value)
    result.window.copy_(torch.tensor([1.5, 4.0]))
    for tensor in (result.norm, result.clip_factor, result.skip, result.unscale):
        tensor.fill_(math.nan)
    if result.good is not None:
        result.good.fill_(good)
    return result


def assert_judged(result: Judgement, expected: Judgement) -> None:
    """Counts are equal, numbers a few roundings away."""
    for name, ours, theirs in zip(result._fields, result, expected, strict=True):
        if theirs is None:
            assert ours is None, name
        else:
            torch.testing.assert_close(
                ours.double(), theirs.double(), rtol=1e-6, atol=0, equal_nan=True, msg=lambda text, n=name: f"{n}: {text}"
            )


def assert_near(result: Flat, expected: Flat, before: Flat) -> None:
    """Within a rounding of the numbers involved; the low copy is the weights', rounded once; gaps hold zeros.

    What a step changes is right to a millionth, so an error cannot hide behind the weights' own size.
    """
    for name in ("weights", "mean", "square", "average"):
        ours, truth, old = (getattr(each, name) for each in (result, expected, before))
        if ours is None:
            continue
        room = 3e-6 * (truth - old.double()).abs() + 1.3e-7 * (truth.abs() + old.double().abs()) + 1e-12
        assert ((ours.double() - truth).abs() <= room).all(), (name, ((ours.double() - truth).abs() / room).max())
        assert not ours[gaps()].any(), name
    if result.low is not None:
        assert torch.equal(result.low, result.weights.to(result.low.dtype))


def bits(tensor: Tensor) -> Tensor:
    """What cannot be equal for numbers that differ in anything, the sign of a zero or a NaN included."""
    return tensor.view({8: torch.int64, 4: torch.int32, 2: torch.int16}[tensor.itemsize])


def same_bits(first: tuple[Tensor | None, ...], second: tuple[Tensor | None, ...]) -> bool:
    return all(
        a is b if a is None or b is None else torch.equal(bits(a), bits(b)) for a, b in zip(first, second, strict=True)
    )
