"""Flat buffers: a network stays what it is, rounded copies give autocast's bits, pieces of gradients cover all."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eco_fast.config import Config
from eco_fast.models import build
from eco_fast.train import parameters as module
from eco_fast.train.learner import Learner
from eco_fast.train.parameters import Parameters, rounded_by_autocast

SMALL = {
    "edsr-tiny": {"blocks": 1, "channels": 8},
    "rcan": {"groups": 1, "blocks": 1, "channels": 16},
    "rlfn-s": {"blocks": 1, "channels": 8},
}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build(name, 2, **SMALL[name]).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", SMALL)
def test_a_network_keeps_values_and_layouts(name: str) -> None:
    ours, theirs = network(name), network(name)
    Parameters(ours, average=True, precision="fp32")
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b) and a.stride() == b.stride() and a.requires_grad


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", SMALL)
def test_rounded_copies_give_the_bits_of_autocast(name: str, precision: str) -> None:
    """The picture and every gradient."""
    plain, config = network(name), Config()
    run = config.run.model_copy(update={"device": "cpu", "precision": precision, "compile": "off"})
    x = torch.rand(2, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    made = Learner(copy.deepcopy(plain), config.optim, config.guard, run, example=x[:1])
    with torch.autocast("cpu", {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]):
        expected = plain(x)
    sr = made(x)
    assert torch.equal(sr, expected)
    grad = torch.randn_like(sr)
    expected.backward(grad)
    made.backward(sr, grad)
    for ours, theirs in zip(made.parameters.gradient_views, plain.parameters(), strict=True):
        assert theirs.grad is not None and torch.equal(ours, theirs.grad)
    low = {leaf.dtype for leaf in made.parameters.read.parameters()}
    assert torch.float32 in low and len(low) == 2  # the last convolutions are not rounded


def test_only_what_is_rounded_anyway_is_rounded() -> None:
    """A weight that is used in another way too, or where autocast is off, is left to autocast."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain, self.scaled, self.full, self.shared = (nn.Conv2d(3, 3, 1) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            x = F.conv2d(self.plain(x), 0.5 * self.scaled.weight)
            with torch.autocast("cpu", enabled=False):
                x = self.full(x.float())
            return self.shared(self.shared(x)) + self.shared.weight.mean()

    odd = Odd()
    found = rounded_by_autocast(odd, torch.rand(1, 3, 4, 4), "bf16")
    names = {name for name, p in odd.named_parameters() if any(p is each for each in found)}
    assert names == {"plain.weight", "plain.bias", "shared.bias"}
    assert rounded_by_autocast(odd, torch.rand(1, 3, 4, 4), "fp32") == []


def test_statistics_are_not_moved_by_the_look() -> None:
    normalised = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    before = copy.deepcopy(normalised.state_dict())
    rounded_by_autocast(normalised, torch.rand(1, 3, 4, 4), "bf16")
    assert all(torch.equal(before[name], value) for name, value in normalised.state_dict().items())


def test_frozen_and_unused_parameters() -> None:
    layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)])
    layers[1].requires_grad_(False)
    kept = Parameters(layers, average=True, precision="fp32")
    assert len(kept.tensors) == 4
    kept.gradients.fill_(7.0)
    layers[0](torch.ones(1, 2)).sum().backward()
    kept.gather()
    used, unused = kept.gradient_views[:2], kept.gradient_views[2:]
    assert all(view.abs().sum() > 0 for view in used) and all(view.abs().sum() == 0 for view in unused)
    kept.gather(add=True)
    assert all(view.abs().sum() > 0 for view in used)
    assert not any(p.requires_grad for p in kept.averaged.parameters())


@pytest.mark.parametrize("bucket", [1, 10_000, 1 << 30])
def test_pieces_cover_all_from_the_end(monkeypatch: pytest.MonkeyPatch, bucket: int) -> None:
    monkeypatch.setattr(module, "_BUCKET", bucket)
    kept = Parameters(network("edsr-tiny"), average=False, precision="fp32")
    pieces = list(module._pieces(kept))
    assert [i for piece in reversed(pieces) for i in piece] == list(range(len(kept.tensors)))
    assert (len(pieces) == 1) == (bucket == 1 << 30)
