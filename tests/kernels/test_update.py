"""The update in plain PyTorch against float64, and to the bit against PyTorch's own optimisers."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from eco_kernels import (
    Clip,
    Flat,
    Judgement,
    Segments,
    adam_update,
    first_blocks,
    judge_update,
    lamb_update,
    reference,
)
from eco_kernels.update import BLOCK
from tests.kernels.updates import (
    CLIPS,
    COPIES,
    SIZES,
    Case,
    assert_judged,
    assert_near,
    bits,
    clone,
    flat,
    gaps,
    judged,
    same_bits,
    segments,
    sequence,
    state,
)


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("scale", [None, 1024.0])
def test_judgement_against_float64(clip: Clip, scale: float | None) -> None:
    gradients, loss, before = flat().gradients, torch.tensor(2.5), state(last=2.0, scale=scale)
    kept = gradients.clone()
    expected = reference.judge_update(gradients, loss, before, factor=1.5, clip=clip)
    judge_update(gradients, loss, before, factor=1.5, clip=clip)
    assert_judged(before, expected)
    assert torch.equal(gradients, kept)


@pytest.mark.grid(
    kind=("adam", "adamw", "lamb"),
    clip=CLIPS,
    weight_decay=(0.0, 0.02),
    copies=COPIES,
    tensors=(False, True),
    scale_and_steps=((None, 0.0), (1024.0, 5.0), (None, 1e6)),
)
def test_update_against_float64(kind, clip, weight_decay, copies, tensors, scale_and_steps) -> None:
    scale, steps = scale_and_steps
    before = flat(average=copies[0], low=copies[1], size=scale or 1.0)
    verdict = judged(before.gradients, state(scale=scale, steps=steps), clip)
    case, result = Case(kind, clip, weight_decay, tensors), clone(before)
    case.update(result, verdict)
    assert_near(result, case.expected(before, verdict), before)


@pytest.mark.parametrize("kind", ["adam", "adamw"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.02])
def test_adam_has_the_bits_of_pytorch(kind: str, weight_decay: float) -> None:
    """Its fused form on the same flat tensor, with its clipping, over some updates, one of which is skipped."""
    ours = flat(average=True, low=torch.bfloat16)
    ours.mean.zero_()
    ours.square.zero_()
    ours.average.copy_(ours.weights)
    theirs, mixed = torch.nn.Parameter(ours.weights.clone()), ours.weights.clone()
    optimiser = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind](
        [theirs], lr=1e-2, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True
    )
    verdict, clip = Judgement.fresh(), Clip(0.5, 3.0)
    for step in range(6):
        gradients = flat(seed=step).gradients
        loss = torch.tensor(math.nan if step == 3 else 1.0)
        ours.gradients.copy_(gradients)
        judge_update(ours.gradients, loss, verdict, clip=clip)
        adam_update(
            ours, verdict, lr=1e-2, share=0.2, betas=(0.9, 0.99), weight_decay=weight_decay,
            decoupled=kind == "adamw", clip=clip,
        )  # fmt: skip
        theirs.grad = gradients.clamp(-clip.value, clip.value) * verdict.clip_factor
        optimiser.found_inf = torch.tensor(float(step == 3))
        optimiser.step()
        mixed.lerp_(theirs.detach(), 0.2 * float(step != 3))
        kept = optimiser.state[theirs]
        assert same_bits(
            (ours.weights, ours.mean, ours.square, verdict.steps, ours.average, ours.low),
            (theirs.detach(), kept["exp_avg"], kept["exp_avg_sq"], kept["step"], mixed, theirs.detach().bfloat16()),
        )
    assert verdict.steps == 5


@pytest.mark.parametrize("clip", CLIPS[1:])
def test_norms_and_clip_factors_are_those_of_pytorch(clip: Clip) -> None:
    gradients, verdict = flat().gradients, state()
    judge_update(gradients, torch.tensor(1.0), verdict, clip=clip)
    parameter = torch.nn.Parameter(torch.zeros_like(gradients))
    parameter.grad = gradients.clone()
    assert verdict.norm.item() == pytest.approx(torch.nn.utils.get_total_norm([gradients]).item(), rel=1e-5)
    if clip.value:
        torch.nn.utils.clip_grad_value_([parameter], clip.value)
    if clip.norm:
        torch.nn.utils.clip_grad_norm_([parameter], clip.norm)
    clipped = gradients.clamp(-clip.value, clip.value) if clip.value else gradients
    torch.testing.assert_close(clipped * verdict.clip_factor, parameter.grad, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ["adam", "adamw", "lamb"])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("scale", [None, 1024.0])
def test_a_skipped_update_keeps_every_bit(kind: str, wrong: float, scale: float | None) -> None:
    result = flat(average=True, low=torch.float16)
    result.gradients[1234] = wrong
    before, verdict, clip = clone(result), state(scale=scale), Clip(0.5, 1.0)
    judge_update(result.gradients, torch.tensor(1.0), verdict, clip=clip)
    assert (verdict.skip.item(), verdict.steps.item(), verdict.skipped.item()) == (1.0, 6.0, 4)
    Case(kind, clip, 0.02).update(result, verdict)
    assert same_bits(result._replace(gradients=None), before._replace(gradients=None))


@pytest.mark.parametrize("kind", ["adam", "adamw", "lamb"])
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_gaps_stay_zero_whatever_the_gradients_hold(kind: str, clip: Clip, wrong: float) -> None:
    """Those of the gradients too: nothing writes there again, and a NaN would end every later update."""
    made = flat(average=True, low=torch.bfloat16)
    made.gradients[0] = wrong
    verdict = judged(made.gradients, state(), clip)
    Case(kind, clip, 0.02, True).update(made, verdict)
    assert verdict.skip == 1
    assert all(not buffer[gaps()].any() for buffer in made if buffer is not None)


def test_a_share_of_one_copies() -> None:
    for share in (1.0, torch.tensor(1.0)):
        result = flat(average=True)
        adam_update(result, judged(result.gradients, state()), lr=0.1, share=share)
        assert same_bits((result.weights,), (result.average,))


def test_judgements_in_a_row_against_float64() -> None:
    """Jumps of the loss, what is not finite in loss and gradients, the loss scale halved and doubled."""
    for judgement, expected in sequence():
        assert_judged(judgement, expected)


def test_the_same_bits_every_time() -> None:
    results = []
    for _ in range(3):
        buffers, verdict = flat(average=True, low=torch.bfloat16), state()
        judge_update(buffers.gradients, torch.tensor(1.0), verdict, clip=Clip(0.5, 1.0))
        Case("lamb", Clip(0.5, 1.0), 0.02).update(buffers, verdict)
        results.append((*buffers, *verdict))
    assert same_bits(results[0], results[1]) and same_bits(results[0], results[2])


def test_parameters_that_are_views_are_updated() -> None:
    """As a network has them; autograd does not stand in the way."""
    buffers = flat()
    parameter = torch.nn.Parameter(buffers.weights[BLOCK : BLOCK + 1500].view(15, 100))
    loss = (parameter * 2).sum()
    loss.backward()
    before = parameter.detach().clone()
    verdict = state()
    judge_update(buffers.gradients, loss, verdict)
    adam_update(buffers, verdict, lr=0.1, share=1.0)
    assert not torch.equal(parameter, before)
    assert not verdict.last.requires_grad


def test_segments() -> None:
    assert first_blocks(SIZES) == [0, 1, 3, 4, 5, 9]
    ours = segments()
    assert ours.first_block.tolist() == first_blocks(SIZES)
    assert ours.of_block.tolist() == [0, 1, 1, 2, 3, 4, 4, 4, 4]
    assert {each.dtype for each in ours} == {torch.int32}
    assert len(gaps()) == 9 * BLOCK and int((~gaps()).sum()) == sum(SIZES)
    for wrong in ([], [3, 0]):
        with pytest.raises(ValueError, match="must have elements"):
            Segments.of(wrong)


def test_bits_tell_zeros_apart() -> None:
    assert not torch.equal(bits(torch.tensor([0.0])), bits(torch.tensor([-0.0])))


BUFFERS, VERDICT = flat(average=True, low=torch.bfloat16), state()


def without(name: str) -> dict[str, Any]:
    return {"flat": BUFFERS._replace(**{name: None})}


def other(name: str, value: Tensor) -> dict[str, Any]:
    return {"flat": BUFFERS._replace(**{name: value})}


@pytest.mark.parametrize("function", [adam_update, lamb_update])
@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        (without("mean"), TypeError, "mean is a NoneType"),
        (other("weights", BUFFERS.weights[:-1]), ValueError, "9215 elements; it must be a multiple of 1024"),
        (other("weights", BUFFERS.weights.double()), TypeError, "weights has dtype torch.float64"),
        (other("gradients", BUFFERS.gradients[:BLOCK]), ValueError, "gradients has 1024 elements; the weights have"),
        (other("square", BUFFERS.square.repeat_interleave(2)[::2]), ValueError, "square has stride"),
        (other("average", BUFFERS.average.to("meta")), ValueError, "average is on meta"),
        (other("low", BUFFERS.weights), TypeError, "low has dtype torch.float32"),
        ({"lr": torch.ones(2)}, ValueError, r"lr has shape \(2,\)"),
        ({"lr": "1"}, TypeError, "lr is a str"),
        ({"share": torch.ones((), dtype=torch.float64)}, TypeError, "share has dtype"),
        ({"share": True}, TypeError, "share is a bool"),
        ({"betas": (0.9, 1.0)}, ValueError, r"betas are \(0.9, 1.0\)"),
        ({"eps": 0.0}, ValueError, "eps is 0.0"),
        ({"clip": Clip(-1.0)}, ValueError, "is negative"),
        ({"state": VERDICT._replace(skip=torch.zeros((), dtype=torch.int64))}, TypeError, "skip has dtype"),
        ({"state": VERDICT._replace(scale=torch.ones(()))}, ValueError, "a loss scale needs both"),
    ],
)
def test_errors(function: Any, changed: dict, error: type[Exception], words: str) -> None:
    arguments = {"flat": BUFFERS, "state": VERDICT, "lr": 0.1, "share": 1.0}
    if function is lamb_update:
        arguments["segments"] = segments()
    with pytest.raises(error, match=words):
        function(**(arguments | changed))


def test_errors_of_segments() -> None:
    for wrong, error, words in (
        (Segments.of([BLOCK]), ValueError, "of_block has 1 entries; the buffers have 9 blocks"),
        (segments()._replace(first_block=torch.zeros(2)), TypeError, "first_block has dtype"),
    ):
        with pytest.raises(error, match=words):
            lamb_update(BUFFERS, wrong, VERDICT, lr=0.1, share=1.0)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"gradients": BUFFERS.gradients[:5]}, ValueError, "multiple of 1024"),
        ({"loss": torch.ones(1)}, ValueError, "loss has shape"),
        ({"loss": 1.0}, TypeError, "loss is a float"),
        ({"factor": -1.0}, ValueError, "factor is -1.0"),
        ({"factor": math.nan}, ValueError, "factor is nan"),
        ({"clip": Clip(0.0, -2.0)}, ValueError, "is negative"),
        ({"state": VERDICT._replace(window=torch.zeros(()))}, ValueError, "window has shape"),
    ],
)
def test_errors_of_the_judgement(changed: dict, error: type[Exception], words: str) -> None:
    arguments = {"gradients": BUFFERS.gradients, "loss": torch.ones(()), "state": VERDICT}
    with pytest.raises(error, match=words):
        judge_update(**(arguments | changed))


def test_a_fresh_judgement() -> None:
    fresh = Judgement.fresh(scale=2.0**10)
    assert (fresh.last.item(), fresh.scale.item(), fresh.good.item()) == (math.inf, 1024.0, 0)
    assert Judgement.fresh(last=3.0).last == 3.0
    assert Judgement.fresh().scale is None
    assert len(Flat._fields) == 6
