"""`eco_kernels.update` does what the trainer's guard, clipping, loss scale, optimisers and average do together."""

import math

import pytest
import torch
from torch import Tensor, nn

from eco_fast.config import OptimConfig
from eco_fast.train.guard import SkipRule
from eco_fast.train.optim import Ema, LossScale, clip_gradients, make_optimizer
from eco_kernels import Clip, Flat, Judgement, Segments, adam_update, first_blocks, judge_update, lamb_update
from eco_kernels.update import BLOCK

LR, SHARE, FACTOR = 1e-2, 0.2, 1.5
LOSSES = (1.0, 1.4, 2.2, math.nan, 2.0, 1.0)
"""The third is a jump; the gradients of the fifth are not finite."""


class Network(nn.Module):
    """Parameters of odd sizes, one of them zero."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shapes = ((7, 3, 3, 3), (7,), (64, 40), (1,))
        self.tensors = nn.ParameterList(0.1 * torch.randn(shape, generator=generator) for shape in shapes)
        nn.init.zeros_(self.tensors[1])


def flattened(tensors: list[Tensor]) -> Tensor:
    sizes = [each.numel() for each in tensors]
    result = torch.zeros(first_blocks(sizes)[-1] * BLOCK)
    for start, each in zip(first_blocks(sizes), tensors, strict=False):
        result[start * BLOCK : start * BLOCK + each.numel()] = each.flatten()
    return result


class Trainer:
    """The parts, called as `Learner.apply` calls them."""

    def __init__(self, config: OptimConfig, scaled: bool) -> None:
        self.network, self.config = Network(), config
        self.parameters = list(self.network.parameters())
        self.optimizer, self.ema = make_optimizer(self.parameters, config), Ema(self.network)
        self.guard, self.scale = SkipRule(FACTOR, 0.0, "cpu"), LossScale("cpu") if scaled else None
        self.window, self.norm = torch.zeros(2), torch.zeros(())

    def step(self, loss: Tensor, gradients: list[Tensor]) -> None:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        if self.scale is not None:
            self.scale.unscale([p.grad for p in self.parameters])
        self.norm = clip_gradients(self.parameters, self.config)
        if self.scale is not None:
            self.scale.adapt(self.norm)
        skip = self.guard.judge(loss, self.norm)
        self.optimizer.found_inf = skip
        self.optimizer.step()
        self.ema.average(SHARE, skip)
        self.window += torch.stack((torch.where(skip.bool(), 0.0, loss), 1.0 - skip))

    def moments(self) -> list[Tensor]:
        states = [self.optimizer.state[p] for p in self.parameters]
        return [flattened([each[name] for each in states]) for name in ("exp_avg", "exp_avg_sq")]


@pytest.mark.parametrize("kind", ["adam", "adamw", "lamb"])
@pytest.mark.parametrize("clip", [Clip(), Clip(0.5, 3.0)])
@pytest.mark.parametrize("scaled", [False, True])
def test_updates_in_a_row(kind: str, clip: Clip, scaled: bool) -> None:
    """Counts to the bit, numbers but for the order of sums, and for the last elements of a tensor.

    There PyTorch's fused forms on a CPU, which take eight elements at a time, round in another way.
    """
    config = OptimConfig(name=kind, lr=LR, weight_decay=0.02, clip_value=clip.value, clip_norm=clip.norm)
    theirs = Trainer(config, scaled)
    weights = flattened([p.detach() for p in theirs.parameters])
    ours = Flat(weights, *(torch.zeros_like(weights) for _ in range(3)), weights.clone())
    state = Judgement.fresh(scale=theirs.scale.scale.item() if theirs.scale else None)
    segments = Segments.of([p.numel() for p in theirs.parameters])
    generator = torch.Generator().manual_seed(1)
    settings = {"lr": LR, "share": SHARE, "betas": config.betas, "eps": config.eps, "weight_decay": 0.02, "clip": clip}
    for step, value in enumerate(LOSSES):
        scale = 1.0 if state.scale is None else state.scale.item()
        gradients = [scale * torch.randn(p.shape, generator=generator) for p in theirs.parameters]
        if step == 4:
            gradients[2][3, 4] = math.inf
        loss = torch.tensor(value)
        theirs.step(loss, gradients)
        ours.gradients.copy_(flattened(gradients))
        judge_update(ours.gradients, loss, state, factor=FACTOR, clip=clip)
        if kind == "lamb":
            lamb_update(ours, segments, state, **settings)
        else:
            adam_update(ours, state, decoupled=kind == "adamw", **settings)
    assert state.skipped == 3
    for name, tensor in theirs.guard.state_dict().items():
        assert torch.equal(getattr(state, name), tensor), name
    if theirs.scale is not None:
        assert torch.equal(state.scale, theirs.scale.scale) and torch.equal(state.good, theirs.scale.good)
    assert torch.equal(state.window, theirs.window)
    torch.testing.assert_close(state.norm, theirs.norm, rtol=1e-6, atol=0)
    found = (ours.mean, ours.square, ours.weights, ours.average)
    network = [flattened([p.detach() for p in each.parameters()]) for each in (theirs.network, theirs.ema.network)]
    for number, (mine, other) in enumerate(zip(found, (*theirs.moments(), *network), strict=True)):
        exact = kind == "lamb" and number < 2 and not clip.norm  # else a norm is in it
        bound = 0 if exact else 1e-6
        torch.testing.assert_close(mine, other, rtol=bound, atol=bound * other.abs().max().item())
