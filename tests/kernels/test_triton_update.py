"""The update's kernels against float64, in Triton's interpreter."""

import math

import pytest
import torch
import triton
import triton.language as tl

from eco_kernels import Clip, Flat, Judgement, Segments, adam_update, judge_update, lamb_update, reference
from eco_kernels.update import BLOCK, kernel
from tests.kernels.updates import (
    CLIPS,
    COPIES,
    Case,
    assert_judged,
    assert_near,
    clone,
    flat,
    judged,
    same_bits,
    sequence,
    state,
)


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("scale", [None, 1024.0])
@pytest.mark.parametrize("width", [4096, 2])
def test_judgement_against_float64(clip, scale, width, fences, monkeypatch) -> None:
    """Also with more partial sums than are added at a time."""
    monkeypatch.setattr(kernel, "JUDGE_WIDTH", tl.constexpr(width))
    gradients, loss = fences.copy(flat().gradients), torch.tensor(2.5)
    judgement = Judgement(
        *(None if each is None else fences.copy(each) for each in state(last=2.0, scale=scale)),
    )
    expected = reference.judge_update(gradients, loss, judgement, factor=1.5, clip=clip)
    judge_update(gradients, loss, judgement, factor=1.5, clip=clip)
    assert_judged(judgement, expected)


def test_judgements_in_a_row_against_float64() -> None:
    for judgement, expected in sequence():
        assert_judged(judgement, expected)


@pytest.mark.grid(
    kind=("adam", "adamw", "lamb"),
    clip=CLIPS,
    weight_decay=(0.0, 0.02),
    copies=COPIES,
    tensors=(False, True),
    scale_and_steps=((None, 0.0), (1024.0, 5.0), (None, 1e6)),
)
def test_update_against_float64(kind, clip, weight_decay, copies, tensors, scale_and_steps, fences) -> None:
    scale, steps = scale_and_steps
    before = flat(average=copies[0], low=copies[1], size=scale or 1.0)
    verdict = judged(before.gradients, state(scale=scale, steps=steps), clip)
    case, result = Case(kind, clip, weight_decay, tensors), before.map(fences.copy)
    case.update(result, verdict)
    assert_near(result, case.expected(before, verdict), before)
    assert same_bits((result.gradients,), (before.gradients,))


@pytest.mark.parametrize("kind", ["adam", "adamw", "lamb"])
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_skipped_update_keeps_every_bit(kind: str, wrong: float) -> None:
    result = flat(average=True, low=torch.bfloat16)
    result.gradients[1234] = wrong
    before, verdict = clone(result), state(steps=0.0)
    judge_update(result.gradients, torch.tensor(1.0), verdict)
    kept = Judgement(*(None if each is None else each.clone() for each in verdict))
    Case(kind, Clip(), 0.02).update(result, verdict)
    assert same_bits(result, before)
    assert same_bits(verdict, kept)


@pytest.mark.parametrize("kind", ["adam", "lamb"])
@pytest.mark.parametrize("tensors", [False, True])
def test_a_share_of_one_copies(kind: str, tensors: bool) -> None:
    result = flat(average=True)
    Case(kind, tensors=tensors, share=1.0).update(result, judged(result.gradients, state()))
    assert same_bits((result.weights,), (result.average,))


def test_one_scalar_on_the_device_and_one_on_the_host() -> None:
    results = []
    for share in (0.2, torch.tensor(0.2)):
        buffers = flat(average=True)
        adam_update(buffers, judged(buffers.gradients, state()), lr=torch.tensor(1e-3), share=share)
        results.append(buffers)
    assert same_bits(*results)


@pytest.mark.parametrize("width", [1024, 2])
def test_trust_ratios_of_tensors_of_many_blocks(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one whose weights, and one whose update is zero; and a norm above the clamp."""
    monkeypatch.setattr(kernel, "RATIO_WIDTH", tl.constexpr(width))
    sizes = (5 * BLOCK, BLOCK, BLOCK, 3 * BLOCK)
    generator, blocks = torch.Generator().manual_seed(0), Segments.of(sizes)
    buffers = Flat(*(torch.randn(sum(sizes), generator=generator) for _ in range(4)))
    buffers.square.square_()
    buffers.weights[5 * BLOCK : 6 * BLOCK] = 0.0
    for each in (buffers.gradients, buffers.mean):
        each[6 * BLOCK : 7 * BLOCK] = 0.0
    verdict, before = judged(buffers.gradients, state()), clone(buffers)
    lamb_update(buffers, blocks, verdict, lr=0.1, share=0.0)
    expected = reference.lamb_update(before, blocks, verdict, lr=0.1, share=0.0)
    torch.testing.assert_close(buffers.weights.double(), expected.weights, rtol=1e-6, atol=1e-6)
    assert torch.equal(buffers.weights[6 * BLOCK : 7 * BLOCK], before.weights[6 * BLOCK : 7 * BLOCK])


def test_repeats_give_the_same_bits() -> None:
    results = []
    for _ in range(5):
        buffers, verdict = flat(average=True, low=torch.bfloat16), state()
        judge_update(buffers.gradients, torch.tensor(1.0), verdict, clip=Clip(0.5, 1.0))
        Case("lamb", Clip(0.5, 1.0), 0.02).update(buffers, verdict)
        results.append((*buffers, *verdict))
    assert all(same_bits(results[0], each) for each in results[1:])


@triton.jit
def _corrections_kernel(steps, out, log_beta):
    lane = tl.arange(0, 16)
    tl.store(out + lane, kernel.bias_correction(tl.load(steps + lane), log_beta))


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.99, 0.999, 0.9999])
def test_bias_corrections(beta: float) -> None:
    steps = torch.tensor([1, 2, 3, 4, 5, 6, 7, 10, 69, 70, 499, 501, 1000, 5000, 1e5, 1e6])
    out = torch.empty(16)
    _corrections_kernel[(1,)](steps, out, math.log(beta) if beta else -math.inf)
    torch.testing.assert_close(out.double(), 1 - beta ** steps.double(), rtol=6e-7, atol=0)


def test_buffers_too_large_are_refused() -> None:
    with pytest.raises(ValueError, match="too large"):
        kernel._elements(torch.zeros(()).expand(2**31))
