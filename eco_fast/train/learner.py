"""A network in training with all that changes when it is updated: optimiser, average, guard, loss scale."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from eco_fast.config import GuardConfig, OptimConfig, RunConfig
from eco_fast.train.guard import SkipRule
from eco_fast.train.machine import autocast, compiled
from eco_fast.train.optim import (
    Ema,
    LossScale,
    clip_gradients,
    ema_share,
    learning_rate,
    make_optimizer,
    takes_device_scalars,
)
from eco_fast.train.world import World


class Learner:
    """Called, it is the network's forward pass; `apply` does the update once gradients are there.

    What is done with the network in between, and with others beside it, is a method's own: see `update.py`.
    """

    def __init__(
        self, network: nn.Module, optim: OptimConfig, guard: GuardConfig, run: RunConfig, world: World | None = None
    ) -> None:
        """Build the optimiser, the average and the guards.

        Args:
            network: On its device. It is compiled as `run.compile` says; the module itself stays as it is.
            optim: Its optimiser, schedule, clipping and average.
            guard: When an update does not count.
            run: With device and precision resolved.
            world: The processes that share a batch.

        Raises:
            UserError: There is no such optimiser.
        """
        self.network, self.world = network, world or World()
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.parameters, optim, capturable=run.graph)
        self.ema = Ema(network) if optim.ema else None
        self.guard = SkipRule(guard.skip_factor, guard.first_loss, run.device)
        self.loss_scale = LossScale(run.device) if run.precision == "fp16" else None
        self.gradient_norm = torch.zeros((), device=run.device)
        self._forward = self.world.wrap(compiled(network, run.compile))
        self._precision = autocast(run.precision, run.device)
        self._optim, self._steps = optim, run.steps
        # What a graph has to read again in every step lies on the device; elsewhere plain numbers are quicker.
        self._scalars = torch.zeros(2, device=run.device) if run.graph else None
        self._share: float | Tensor = 1.0

    @property
    def averaged(self) -> nn.Module:
        """The network that is validated: the average of the weights where one is kept."""
        return self.network if self.ema is None else self.ema.network

    def schedule(self, step: int) -> None:
        """Set the learning rate, and the share of the weights in their average, for update `step`."""
        rate: float | Tensor = learning_rate(step, self._steps, self._optim)
        self._share = ema_share(step, self._optim.ema)
        if self._scalars is not None:
            self._scalars[0].fill_(rate)
            self._scalars[1].fill_(self._share)
            rate, self._share = self._scalars.unbind()
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def __call__(self, x: Tensor) -> Tensor:
        """The network's answer in the precision of the run, as fp32."""
        with self._precision:
            return self._forward(x).float()

    def without_exchange(self, wanted: bool) -> AbstractContextManager[object]:
        """Gradients made inside stay in this process where that is `wanted`: others of the same update follow."""
        forward = self._forward
        return forward.no_sync() if wanted and hasattr(forward, "no_sync") else nullcontext()

    def apply(self, loss: Tensor) -> Tensor:
        """Clip, decide, update, average, with the gradients that are there.

        Args:
            loss: The mean of all processes, fp32 0-dim on the device.

        Returns:
            1.0 if the update was skipped, else 0.0: fp32 0-dim on the device, not read by the host.
        """
        if self.loss_scale is not None:
            self.loss_scale.unscale([p.grad for p in self.parameters if p.grad is not None])
        self.gradient_norm = clip_gradients(self.parameters, self._optim)
        if self.loss_scale is not None:
            self.loss_scale.adapt(self.gradient_norm)
        skip = self.guard.judge(loss, self.gradient_norm)
        self._optimise(skip)
        if self.ema is not None:
            self.ema.average(self._share, skip)
        return skip

    def _optimise(self, skip: Tensor) -> None:
        if takes_device_scalars(self._optim.name):
            self.optimizer.found_inf = skip  # type: ignore[attr-defined]  # what GradScaler tells fused optimisers
            self.optimizer.step()
        elif not skip.item():  # other optimisers cannot be told: the host has to wait and decide
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """All but the weights and their average: a checkpoint has files of their own for these."""
        state = {"optimizer": self.optimizer.state_dict(), "guard": self.guard.state_dict()}
        return state if self.loss_scale is None else {**state, "loss_scale": self.loss_scale.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put it back, bit for bit."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.guard.load_state_dict(state["guard"])
        if self.loss_scale is not None:
            self.loss_scale.load_state_dict(state["loss_scale"])
