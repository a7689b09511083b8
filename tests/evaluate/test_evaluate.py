"""`evaluate` and `super_resolve`: figures, and what they leave alone."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eco_fast.errors import UserError
from eco_fast.evaluate.benchmark import Pair
from eco_fast.evaluate.bicubic import bicubic_upsample
from eco_fast.evaluate.inference import super_resolve
from eco_fast.evaluate.run import evaluate


class Nearest(nn.Module):
    """Repeats pixels; notes how it is called."""

    def __init__(self, scale: int = 2, gain: float = 1.0) -> None:
        super().__init__()
        self.scale, self.gain = scale, nn.Parameter(torch.tensor(gain))
        self.frozen = nn.Dropout(0.5).eval()
        self.dropout = nn.Dropout(0.5)
        self.seen: list[tuple[bool, bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        self.seen.append((self.training, torch.is_inference_mode_enabled(), channels_last))
        return self.dropout(nn.functional.interpolate(x, scale_factor=self.scale)) * self.gain


@pytest.fixture
def pairs(rng: np.random.Generator) -> list[Pair]:
    lrs = [rng.integers(0, 256, (12 + i, 16, 3), dtype=np.uint8) for i in range(6)]
    return [Pair(f"image{i}", bicubic_upsample(lr, 2), lr) for i, lr in enumerate(lrs)]


def test_network_is_evaluated_and_left_as_it_was(pairs: list[Pair]) -> None:
    network = Nearest().train()
    network.frozen.eval()
    random = torch.get_rng_state()
    tf32 = torch.backends.cudnn.allow_tf32
    scores = evaluate(network, pairs, 2)
    assert network.seen == [(False, True, True)] * 6
    assert network.training and network.dropout.training and not network.frozen.training
    assert torch.equal(random, torch.get_rng_state()) and torch.backends.cudnn.allow_tf32 == tf32
    assert network.gain.requires_grad and not network.gain.is_inference()
    assert scores.names == [pair.name for pair in pairs]
    assert scores.ssim is not None and len(scores.psnr) == len(scores.ssim) == 6


@pytest.mark.parametrize("device", ["cpu", None])
def test_images_of_one_size_go_together(rng: np.random.Generator, device: str | None) -> None:
    sizes = [(30, 40)] * 5 + [(40, 30)] * 2 + [(30, 40), (100, 120), (100, 120)]
    lrs = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    pairs = [Pair(str(i), bicubic_upsample(lr, 2), lr) for i, lr in enumerate(lrs)]
    network = Nearest()
    together = evaluate(network, pairs, 2, device=device)
    assert len(network.seen) == 5  # 5, 2, 1, and the two large ones alone
    alone = [evaluate(network, [pair], 2, device=device) for pair in pairs]
    assert together.names == [str(i) for i in range(10)]
    assert together.psnr == pytest.approx([scores.psnr_y for scores in alone])


def test_mode_is_restored_after_an_error(pairs: list[Pair]) -> None:
    network = Nearest(gain=math.nan).train()
    with pytest.raises(UserError, match="not finite"):
        evaluate(network, pairs, 2)
    assert network.training and network.dropout.training


def test_bicubic_is_no_network(pairs: list[Pair]) -> None:
    scores = evaluate(None, pairs, 2)
    assert scores.psnr_y == math.inf and scores.ssim_y == pytest.approx(1)
    assert evaluate(None, pairs, 2, ssim=False).ssim_y is None


def test_on_image_comes_in_order(pairs: list[Pair]) -> None:
    seen = []
    scores = evaluate(Nearest(), pairs, 2, on_image=lambda pair, sr, psnr, ssim: seen.append((pair.name, psnr, ssim)))
    assert seen == list(zip(scores.names, scores.psnr, scores.ssim or [], strict=True))


def test_network_of_another_scale(pairs: list[Pair]) -> None:
    with pytest.raises(UserError, match="not x2"):
        evaluate(Nearest(scale=3), pairs, 2)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_super_resolve_rounds_half_up_and_clamps(precision: str) -> None:
    lr = np.arange(0, 240, 2, dtype=np.uint8).reshape(5, 8, 3)
    lr.flags.writeable = False
    repeated = lr.repeat(2, axis=0).repeat(2, axis=1)
    assert np.array_equal(super_resolve(Nearest(), lr, precision=precision), repeated)
    expected = np.minimum(np.floor(repeated * 1.25 + 0.5), 255)
    assert np.array_equal(super_resolve(Nearest(gain=1.25), lr, precision=precision), expected)


def test_super_resolve_refuses() -> None:
    with pytest.raises(ValueError, match="uint8"):
        super_resolve(Nearest(), np.zeros((8, 8, 3), np.float32))
    with pytest.raises(ValueError, match="precision"):
        super_resolve(Nearest(), np.zeros((8, 8, 3), np.uint8), precision="fp8")
