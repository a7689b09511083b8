"""The last convolution, 64 -> 3 channels at 192 x 192, in the precisions that it could have: time and error."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from eco_fast.proof.machine import seconds_of
from eco_fast.proof.outcome import Evidence
from eco_fast.proof.stage import Stage

CASES = {  # name -> type of the arithmetic, TF32 allowed, output channels (3 are used)
    "fp32": (torch.float32, False, 3),
    "tf32": (torch.float32, True, 3),
    "bf16": (torch.bfloat16, False, 3),
    "fp32, 8 channels": (torch.float32, False, 8),
    "tf32, 8 channels": (torch.float32, True, 8),
    "bf16, 8 channels": (torch.bfloat16, False, 8),
}


def contest(stage: Stage) -> Evidence:
    """Forward and both gradients of a bf16 input, batch 16."""
    generator = torch.Generator().manual_seed(0)
    batch = 1 if stage.small else 16
    last = {"memory_format": torch.channels_last}
    x = torch.randn(batch, 64, 192, 192, generator=generator).to(stage.device, torch.bfloat16, **last)
    weight = (torch.randn(3, 64, 3, 3, generator=generator) / 24).to(stage.device, **last)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.benchmark
    cudnn.benchmark = True
    try:
        for name, (dtype, tf32, channels) in CASES.items():
            cudnn.allow_tf32 = tf32
            wide = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, channels - 3)).to(**last)
            error = (F.conv2d(x.to(dtype), wide.to(dtype), padding=1)[:, :3].double() - exact).norm() / exact.norm()
            ms = 1000 * seconds_of(_both_ways(x, wide, dtype))
            stage.say(name, benchmark="tail", ms=round(ms, 4), relative_error=float(f"{error.item():.2g}"))
    finally:
        cudnn.allow_tf32, cudnn.benchmark = before
    return Evidence(len(CASES), detail=f"{len(CASES)} cases, batch {batch}")


def _both_ways(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Callable[[], object]:
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    grad = torch.ones(x.shape[0], weight.shape[0], *x.shape[2:], device=x.device, dtype=dtype)
    grad = grad.to(memory_format=torch.channels_last)

    def call() -> object:
        return torch.autograd.grad(F.conv2d(x.to(dtype), weight.to(dtype), padding=1), (x, weight), grad)

    return call
