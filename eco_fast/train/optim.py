"""Optimisers, the learning rate over training, and the average of the weights."""

import copy
import math

import torch
from torch import Tensor, nn

from eco_fast.config import OptimConfig


def make_optimizer(parameters: list[nn.Parameter], config: OptimConfig) -> torch.optim.Optimizer:
    """Fused Adam or AdamW over the trainable parameters."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.name]
    return kind(
        parameters,
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """The learning rate of update `step` (0 to steps - 1): linear warm-up, then constant or cosine to 0."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    progress = (step - config.warmup) / max(1, steps - config.warmup)
    return config.lr * (0.5 + 0.5 * math.cos(math.pi * progress))


def clip_gradients(parameters: list[nn.Parameter], config: OptimConfig) -> None:
    """Clip by value, then by norm, each where it is asked for."""
    if config.clip_value:
        nn.utils.clip_grad_value_(parameters, config.clip_value, foreach=True)
    if config.clip_norm:
        nn.utils.clip_grad_norm_(parameters, config.clip_norm, foreach=True)


class Ema:
    """Exponential moving average of a network's weights, in one foreach operation.

    The decay rises as `step / (step + 10)` to its full value. So the first update copies, and the random initial
    weights do not weigh on the average for thousands of steps.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        self._average: list[Tensor] = list(self.network.parameters())
        self._source: list[Tensor] = list(network.parameters())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights after update `step`, counted from 0."""
        torch._foreach_lerp_(self._average, self._source, 1.0 - min(self.decay, step / (step + 10)))
