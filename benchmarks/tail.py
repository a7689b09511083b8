"""The end of EDSR-baseline, from bf16 features to the picture, in the ways to compute it: time and error."""

from collections.abc import Callable

import torch
from chains import tail_layers
from torch import Tensor

from eco_fast.models.layers import FACTORS
from eco_fast.proof.machine import seconds_of
from eco_fast.proof.outcome import Evidence
from eco_fast.proof.stage import Stage
from eco_kernels import linear_tail, reference

CHANNELS, PATCH = 64, 192
EXACT_BATCH = 2  # of what is compared with float64

Tail = Callable[[Tensor, list[Tensor], list[Tensor]], Tensor]

CASES: dict[str, Tail] = {
    "layers in bf16": lambda *tail: tail_layers(*tail, torch.bfloat16, torch.bfloat16),
    "layers, the last in fp32": lambda *tail: tail_layers(*tail, torch.bfloat16, torch.float32),
    "linear tail": linear_tail,
}


def contest(stage: Stage) -> Evidence:
    """Picture and all gradients, batch 16, HR patches of 192 pixels; errors are of the whole, against float64."""
    batch, patch = (1, PATCH // 4) if stage.small else (16, PATCH)
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.benchmark
    cudnn.allow_tf32, cudnn.benchmark = False, True
    try:
        for scale in FACTORS:
            inputs = tail_inputs(batch, CHANNELS, scale, patch // scale, torch.device(stage.device))
            few = [inputs[0][:EXACT_BATCH], *inputs[1:]]
            exact = both_ways(reference.linear_tail, [each.double() for each in few])()
            for name, tail in CASES.items():
                picture, *gradients = map(_relative_error, both_ways(tail, few)(), exact)
                stage.say(
                    f"x{scale}, {name}",
                    benchmark="tail",
                    ms=round(1000 * seconds_of(both_ways(tail, inputs)), 4),
                    picture_error=float(f"{picture:.2g}"),
                    features_error=float(f"{gradients[0]:.2g}"),
                    weights_error=float(f"{max(gradients[1:]):.2g}"),
                )
    finally:
        cudnn.allow_tf32, cudnn.benchmark = before
    return Evidence(len(FACTORS) * len(CASES), detail=f"{len(FACTORS) * len(CASES)} cases, batch {batch}")


def tail_inputs(batch: int, channels: int, scale: int, side: int, device: torch.device) -> list[Tensor]:
    """bf16 features, then weights and biases of a tail, as the networks have them."""
    generator = torch.Generator().manual_seed(0)
    sizes = [*(factor**2 * channels for factor in FACTORS[scale]), 3]
    features = torch.randn(batch, channels, side, side, generator=generator).bfloat16()
    weights = [torch.randn(size, channels, 3, 3, generator=generator) / (3 * channels**0.5) for size in sizes]
    biases = [torch.randn(size, generator=generator) for size in sizes]
    last = {"memory_format": torch.channels_last}
    return [*(each.to(device, **last) for each in (features, *weights)), *(bias.to(device) for bias in biases)]


def both_ways(tail: Tail, inputs: list[Tensor]) -> Callable[[], list[Tensor]]:
    """A call that gives the picture and the gradients of all inputs, for a gradient of ones."""
    inputs = [each.detach().clone().requires_grad_() for each in inputs]
    half = len(inputs) // 2 + 1

    def call() -> list[Tensor]:
        picture = tail(inputs[0], inputs[1:half], inputs[half:])
        return [picture.detach(), *torch.autograd.grad(picture, inputs, torch.ones_like(picture))]

    return call


def _relative_error(result: Tensor, exact: Tensor) -> float:
    return ((result.double() - exact).norm() / exact.norm()).item()
