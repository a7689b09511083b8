"""Optimisers, the learning rate over training, and the share of the weights in their average."""

import difflib
import inspect
import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from eco_fast.config import OptimConfig
from eco_fast.errors import UserError
from eco_fast.train.parameters import Parameters
from eco_kernels import Clip, Flat, Judgement, adam_update, lamb_update

FIRST_SCALE = 2.0**10
"""Of an fp16 loss; it is doubled and halved on the device, see `eco_kernels.Judgement`."""

_FLAT = ("adam", "adamw", "lamb")


class Optimizer(Protocol):
    """Updates a network's weights, their average and their rounded copy, once the gradients are judged."""

    def step(self, rate: float | Tensor, share: float | Tensor) -> None:
        """Update, unless the judgement says skip.

        Args:
            rate: The learning rate; a tensor is fp32 0-dim on the device.
            share: Of the weights in their average, see `ema_share`; likewise.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """As optimisers of `torch.optim` have it."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put it back, bit for bit."""
        ...


def make_optimizer(parameters: Parameters, state: Judgement, config: OptimConfig) -> Optimizer:
    """Adam, AdamW and LAMB on flat buffers, or any other optimiser of `torch.optim` by its name.

    Args:
        parameters: What is trained.
        state: Judges every update before its step.
        config: Name and options.

    Raises:
        UserError: There is none of that name, or it does not take one of `optim.options`.
    """
    name = config.name.lower()
    if takes_device_scalars(config):
        return FlatOptimizer(parameters, state, config)
    kinds = {name.lower(): kind for name, kind in vars(torch.optim).items() if isinstance(kind, type)}
    kind: Callable[..., torch.optim.Optimizer] | None = kinds.get(name) if name != "optimizer" else None
    if kind is None and name not in _FLAT:
        near = difflib.get_close_matches(name, [*kinds.keys() - {"optimizer"}, *_FLAT], n=1, cutoff=0)
        raise UserError(f"unknown optimiser optim.name={config.name}; did you mean {near[0]}?")
    known = {} if kind is None else inspect.signature(kind).parameters
    usual = {"betas": config.betas, "eps": config.eps, "weight_decay": config.weight_decay}
    options: dict[str, Any] = {name: value for name, value in usual.items() if name in known} | config.options
    unknown = sorted(options.keys() - known.keys())
    if unknown or kind is None:
        raise UserError(f"optimiser {config.name} has no option {', '.join(unknown)}; fix optim.options")
    return TorchOptimizer(kind(parameters.tensors, lr=config.lr, **options), parameters, state, clip_of(config))


def takes_device_scalars(config: OptimConfig) -> bool:
    """Whether learning rate and the decision to skip may lie on the device: nothing of a step waits for the host."""
    return config.name.lower() in _FLAT and not config.options


def clip_of(config: OptimConfig) -> Clip:
    """How gradients are clipped."""
    return Clip(config.clip_value, config.clip_norm)


class FlatOptimizer:
    """Adam, AdamW or LAMB in one or two passes over memory, with clipping, average and rounded copy on the way."""

    def __init__(self, parameters: Parameters, state: Judgement, config: OptimConfig) -> None:
        """Moments begin at 0."""
        mean, square = parameters.buffer(), parameters.buffer()
        self._flat = Flat(parameters.weights, parameters.gradients, mean, square, parameters.average, parameters.low)
        self._moments = [
            {"exp_avg": first, "exp_avg_sq": second}
            for first, second in zip(parameters.views(mean), parameters.views(square), strict=True)
        ]
        self._segments, self._state = parameters.segments, state
        self._lamb = config.name.lower() == "lamb"
        self._settings: dict[str, Any] = {
            "betas": config.betas,
            "eps": config.eps,
            "weight_decay": config.weight_decay,
            "clip": clip_of(config),
        }
        if not self._lamb:
            self._settings["decoupled"] = config.name.lower() == "adamw"

    def step(self, rate: float | Tensor, share: float | Tensor) -> None:
        """See `Optimizer`."""
        if self._lamb:
            lamb_update(self._flat, self._segments, self._state, lr=rate, share=share, **self._settings)
        else:
            adam_update(self._flat, self._state, lr=rate, share=share, **self._settings)

    def state_dict(self) -> dict[str, Any]:
        """See `Optimizer`."""
        counted = {} if self._lamb else {"step": self._state.steps}
        state = {number: {**counted, **moments} for number, moments in enumerate(self._moments)}
        group = {name: self._settings[name] for name in ("betas", "eps", "weight_decay")}
        return {"state": state, "param_groups": [{**group, "params": list(state)}]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Optimizer`."""
        for number, moments in enumerate(self._moments):
            for name, value in state["state"].get(number, {}).items():
                (self._state.steps if name == "step" else moments[name]).copy_(value)


class TorchOptimizer:
    """An optimiser of `torch.optim`: the host has to wait for the judgement and decide."""

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Parameters, state: Judgement, clip: Clip) -> None:
        self.optimizer = optimizer
        self._parameters, self._state, self._clip = parameters, state, clip

    def step(self, rate: float | Tensor, share: float | Tensor) -> None:
        """See `Optimizer`."""
        if self._state.skip.item():
            return
        parameters = self._parameters
        gradients, clip = parameters.gradients, self._clip
        if self._state.scale is not None:
            gradients.mul_(self._state.unscale)
        if clip.value:
            gradients.clamp_(-clip.value, clip.value)
        if clip.norm:
            gradients.mul_(self._state.clip_factor)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for tensor, gradient in zip(parameters.tensors, parameters.gradient_views, strict=True):
            tensor.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if parameters.average is not None:
            parameters.average.lerp_(parameters.weights, share)
        parameters.refresh()

    def state_dict(self) -> dict[str, Any]:
        """See `Optimizer`."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Optimizer`."""
        self.optimizer.load_state_dict(state)


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


def ema_share(step: int, decay: float) -> float:
    """The share of the weights in their average at update `step`, counted from 0.

    The decay rises as `step / (step + 10)` to its full value. So the first update copies, and the random initial
    weights do not weigh on the average for thousands of steps.
    """
    return 1.0 - min(decay, step / (step + 10))
