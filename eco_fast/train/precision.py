"""Numbers of the student's forward and backward: autocast types, TF32, the loss scale of fp16."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions that run under autocast; `fp32` and `tf32` do not."""

_FIRST_SCALE, _GROWTH_STEPS = 2.0**10, 2000


def autocast(precision: str, device_type: str) -> AbstractContextManager[object]:
    """Autocast for a precision; does nothing for `fp32` and `tf32`."""
    return torch.autocast(device_type, AUTOCAST.get(precision), enabled=precision in AUTOCAST)


class LossScale:
    """The factor that keeps gradients of fp16 above its smallest numbers, doubled and halved on the device.

    As `torch.amp.GradScaler` does, but nothing waits for the host: halved when a gradient was not finite, doubled after
    2,000 good updates in a row.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.scale = torch.tensor(_FIRST_SCALE, device=device)
        self.good = torch.zeros((), dtype=torch.int64, device=device)

    def unscale(self, gradients: list[Tensor]) -> None:
        """Divide the gradients by the factor, in place."""
        torch._foreach_mul_(gradients, self.scale.reciprocal())

    def update(self, gradient_norm: Tensor) -> None:
        """Adapt the factor to the norm of the unscaled gradients, fp32 0-dim."""
        finite = gradient_norm.isfinite()
        self.good.add_(1).mul_(finite)
        grow = self.good == _GROWTH_STEPS
        self.good.mul_(~grow)
        self.scale.mul_(torch.where(finite, 1.0 + grow.float(), 0.5))

    def state_dict(self) -> dict[str, Tensor]:
        """The factor and the count of good updates."""
        return {"scale": self.scale, "good": self.good}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put them back."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])
