"""What the tests of the update share: buffers like a network's, and how near they must be to float64."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

import eco_kernels.reference
from eco_kernels import Clip, Flat, Judgement, Segments, first_blocks, judge_update
from eco_kernels.update import BLOCK, GROWTH_STEPS, NO_CLIP

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

    weights, gradients, mean, mixed = draw(0.1), draw(size), draw(0.1 * size), draw(0.1)
    square = draw(0.1 * size).square()
    weights[first[1] * BLOCK : first[2] * BLOCK] = 0.0
    return Flat(weights, gradients, mean, square, mixed if average else None, None if low is None else weights.to(low))


def clone(buffers: Flat) -> Flat:
    return buffers.map(Tensor.clone)


def segments() -> Segments:
    return Segments.of(SIZES)


def state(*, last: float = math.inf, scale: float | None = None, steps: float = 6.0, good: int = 0) -> Judgement:
    """As after some updates, with what is only put out far from what it will be."""
    result = Judgement.fresh(last=last, scale=scale)
    for tensor, value in ((result.skipped, 3), (result.in_a_row, 2), (result.steps, steps)):
        tensor.fill_(value)
    result.window.copy_(torch.tensor([1.5, 4.0]))
    for tensor in (result.norm, result.clip_factor, result.skip):
        tensor.fill_(math.nan)
    if result.good is not None:
        result.unscale.fill_(math.nan)
        result.good.fill_(good)
    return result


def assert_judged(result: Judgement, expected: Judgement) -> None:
    """Counts are equal, numbers a few roundings away; the clip factor of what is skipped means nothing."""
    for name, ours, theirs in zip(result._fields, result, expected, strict=True):
        if theirs is None:
            assert ours is None, name
        elif name != "clip_factor" or not expected.skip:
            torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-6, atol=0, equal_nan=True, msg=name)


def assert_near(result: Flat, expected: Flat, before: Flat) -> None:
    """Within a few roundings of the numbers involved; the low copy is the weights', rounded once; gaps hold zeros.

    What a step changes is right to a millionth, so that an error cannot hide behind the size of the weights.
    """
    old, room = {name: tensor.double() for name, tensor in before._asdict().items() if tensor is not None}, {}
    for name in ("mean", "square", "weights", "average"):
        truth = getattr(expected, name)
        if truth is None:
            continue
        change = (truth - old[name]).abs()
        room[name] = 3e-6 * change + 1.3e-7 * (truth.abs() + old[name].abs()) + 1e-12
        if name == "weights":  # a mean that is the difference of two numbers passes their roundings on
            room[name] += (change / expected.mean.abs() * room["mean"]).nan_to_num()
        error = (getattr(result, name).double() - truth).abs()
        assert (error <= room[name]).all(), f"{name}: {(error / room[name]).max()} times what is allowed"
        assert not getattr(result, name)[gaps()].any(), name
    if result.low is not None:
        assert torch.equal(result.low, result.weights.to(result.low.dtype))


def bits(tensor: Tensor) -> Tensor:
    """What cannot be equal for numbers that differ in anything, the sign of a zero or a NaN included."""
    return tensor.view({8: torch.int64, 4: torch.int32, 2: torch.int16}[tensor.itemsize])


def same_bits(first: tuple[Tensor | None, ...], second: tuple[Tensor | None, ...]) -> bool:
    return all(
        a is b if a is None or b is None else torch.equal(bits(a), bits(b)) for a, b in zip(first, second, strict=True)
    )


COPIES = ((False, None), (True, None), (False, torch.bfloat16), (True, torch.float16))
"""Whether an average is kept, and the type of the low copy."""

CLIPS = (NO_CLIP, Clip(value=0.5), Clip(norm=3.0), Clip(0.5, 3.0))


class Case(NamedTuple):
    """An optimiser with settings."""

    kind: str
    clip: Clip = NO_CLIP
    weight_decay: float = 0.0
    tensors: bool = False
    """Learning rate and share lie on the device, as in graphs."""
    share: float | Tensor = 0.2

    def update(self, buffers: Flat, verdict: Judgement) -> None:
        """By the public function."""
        self._call(eco_kernels, buffers, verdict)

    def expected(self, buffers: Flat, verdict: Judgement) -> Flat:
        """By the reference."""
        return self._call(eco_kernels.reference, buffers, verdict)

    def _call(self, module: Any, buffers: Flat, verdict: Judgement) -> Any:
        options: dict[str, Any] = {"weight_decay": self.weight_decay, "clip": self.clip}
        scalars = {"lr": 3e-3, "share": self.share}
        options |= {name: torch.as_tensor(each) for name, each in scalars.items()} if self.tensors else scalars
        if self.kind == "lamb":
            return module.lamb_update(buffers, segments(), verdict, **options)
        return module.adam_update(buffers, verdict, decoupled=self.kind == "adamw", **options)


def judged(gradients: Tensor, before: Judgement, clip: Clip = NO_CLIP) -> Judgement:
    """`before` after gradients that count."""
    judge_update(gradients, torch.tensor(1.0), before, clip=clip)
    return before


def sequence() -> Iterator[tuple[Judgement, Judgement]]:
    """Judgements one after the other, each with float64's from the same state before it."""
    buffers, judgement, clip = flat(), state(last=2.0, scale=1024.0, good=GROWTH_STEPS - 3), Clip(0.5, 1.0)
    losses = (2.9, 3.1, math.nan, 4.2, 4.4, math.inf, 1.0, -math.inf, 1.5, 1.0)
    wrong = {3: math.nan, 6: math.inf}
    for step, loss in enumerate(losses):
        gradients = buffers.gradients.clone()
        gradients[77] = wrong.get(step, 1.0)
        arguments: Any = (gradients, torch.tensor(loss), judgement)
        expected = eco_kernels.reference.judge_update(*arguments, factor=1.5, clip=clip)
        judge_update(*arguments, factor=1.5, clip=clip)
        yield judgement, expected
