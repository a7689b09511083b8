"""Optimisers, the learning rate over training, the average of the weights, and the scale of an fp16 loss."""

import copy
import difflib
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from eco_fast.config import OptimConfig
from eco_fast.errors import UserError
from eco_fast.train.lamb import Lamb

_FIRST_SCALE, _GROWTH_STEPS = 2.0**10, 2000


def make_optimizer(
    parameters: list[nn.Parameter], config: OptimConfig, *, capturable: bool = False
) -> torch.optim.Optimizer:
    """Adam and AdamW in their fused form, LAMB, or any other optimiser of `torch.optim` by its name.

    Args:
        parameters: What is trained.
        config: Name and options.
        capturable: A CUDA graph will hold its step.

    Raises:
        UserError: There is none of that name, or it does not take one of `optim.options`.
    """
    kind = _optimizers().get(config.name.lower())
    if kind is None:
        near = difflib.get_close_matches(config.name.lower(), list(_optimizers()), n=1, cutoff=0)
        raise UserError(f"unknown optimiser optim.name={config.name}; did you mean {near[0]}?")
    known = inspect.signature(kind).parameters
    usual = {"betas": config.betas, "eps": config.eps, "weight_decay": config.weight_decay}
    options: dict[str, Any] = {name: value for name, value in usual.items() if name in known} | config.options
    unknown = sorted(options.keys() - known.keys())
    if unknown:
        raise UserError(f"optimiser {config.name} has no option {', '.join(unknown)}; fix optim.options")
    if has_fused_form(config.name):
        options |= {"fused": True, "capturable": capturable}
    return kind(parameters, lr=config.lr, **options)


def has_fused_form(name: str) -> bool:
    """Whether the optimiser reads learning rate and `found_inf` on the device: no step of it waits for the host."""
    return name.lower() in ("adam", "adamw")


def takes_device_scalars(name: str) -> bool:
    """Whether learning rate and the decision to skip may lie on the device."""
    return has_fused_form(name) or name.lower() == "lamb"


def _optimizers() -> dict[str, Callable[..., torch.optim.Optimizer]]:
    found: dict[str, Any] = {name.lower(): kind for name, kind in vars(torch.optim).items() if isinstance(kind, type)}
    del found["optimizer"]
    return {**found, "lamb": Lamb}


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """The learning rate of update `step` (0 to steps - 1): a linear warm-up, then the schedule."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "multistep":
        return config.lr * config.gamma ** sum(step >= milestone for milestone in config.milestones)
    progress = (step - config.warmup) / max(1, steps - config.warmup)
    return config.lr * (0.5 + 0.5 * math.cos(math.pi * progress))


def clip_gradients(parameters: list[nn.Parameter], config: OptimConfig) -> Tensor:
    """Clip by value, then by norm, each where it is asked for.

    Returns:
        The norm of all gradients before that, fp32 0-dim on the device.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients, foreach=True)
    after = norm
    if config.clip_value:
        nn.utils.clip_grad_value_(parameters, config.clip_value, foreach=True)
        after = nn.utils.get_total_norm(gradients, foreach=True) if config.clip_norm else norm
    if config.clip_norm:
        nn.utils.clip_grads_with_norm_(parameters, config.clip_norm, after, foreach=True)
    return norm


def ema_share(step: int, decay: float) -> float:
    """The share of the weights in their average at update `step`, counted from 0.

    The decay rises as `step / (step + 10)` to its full value. So the first update copies, and the random initial
    weights do not weigh on the average for thousands of steps.
    """
    return 1.0 - min(decay, step / (step + 10))


class Ema:
    """Exponential moving average of a network's weights, in one foreach operation."""

    def __init__(self, network: nn.Module) -> None:
        self._network = copy.deepcopy(network).eval().requires_grad_(False)
        self._average: list[Tensor] = list(self._network.parameters())
        self._source: list[Tensor] = list(network.parameters())
        self._buffers = list(self._network.buffers()), list(network.buffers())

    @property
    def network(self) -> nn.Module:
        """The network with averaged weights; its buffers, such as statistics of a normalisation, are those of now."""
        ours, theirs = self._buffers
        for buffer, source in zip(ours, theirs, strict=True):
            buffer.copy_(source)
        return self._network

    @torch.no_grad()
    def average(self, share: float | Tensor, skip: Tensor) -> None:
        """Move the average towards the weights.

        Args:
            share: Of the weights, see `ema_share`; a tensor is fp32 0-dim on the device.
            skip: 1.0 leaves the average as it is; fp32 0-dim on the device.
        """
        share = share * (1.0 - skip)
        # Both forms change no number with a share of 0, and copy with one of 1. On a GPU a list of shares is a launch
        # per tensor, a single one is not; on the CPU one pass is quicker than three.
        if share.is_cuda:
            torch._foreach_mul_(self._average, 1.0 - share)
            torch._foreach_add_(self._average, torch._foreach_mul(self._source, share))
        else:
            torch._foreach_lerp_(self._average, self._source, [share] * len(self._average))


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

    def adapt(self, gradient_norm: Tensor) -> None:
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
