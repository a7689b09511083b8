"""A network in training with all that changes when it is updated: optimiser, average, guard, loss scale."""

from typing import Any

import torch
from torch import Tensor, nn

from eco_fast.config import GuardConfig, OptimConfig, RunConfig
from eco_fast.data.rows import BLOCK, rows_on
from eco_fast.train.compiler import compiled
from eco_fast.train.machine import autocast
from eco_fast.train.optim import FIRST_SCALE, clip_of, ema_share, learning_rate, make_optimizer
from eco_fast.train.parameters import Exchange, Parameters, rounded_by_autocast
from eco_fast.train.world import World
from eco_kernels import Judgement, judge_update


class Learner:
    """Called, it is the network's forward pass; `backward` collects gradients, `apply` does the update with them.

    What is done with the network in between, and with others beside it, is a method's own: see `update.py`.
    """

    def __init__(
        self,
        network: nn.Module,
        optim: OptimConfig,
        guard: GuardConfig,
        run: RunConfig,
        world: World | None = None,
        example: Tensor | None = None,
    ) -> None:
        """Build the optimiser, the average and the guards.

        Args:
            network: On its device. It is compiled as `run.compile` says; the module itself stays as it is.
            optim: Its optimiser, schedule, clipping and average.
            guard: When an update does not count.
            run: With device and precision resolved.
            world: The processes that share a batch.
            example: An input, by which weights are found that can be rounded once per step.

        Raises:
            UserError: There is no such optimiser.
        """
        self.network, self.world = network, world or World()
        rounded = [] if example is None else rounded_by_autocast(network, example, run.precision)
        self.parameters = Parameters(network, average=bool(optim.ema), precision=run.precision, rounded=rounded)
        first_scale = FIRST_SCALE if run.precision == "fp16" else None
        self.state = Judgement.fresh(run.device, last=guard.first_loss or torch.inf, scale=first_scale)
        self.optimizer = make_optimizer(self.parameters, self.state, optim)
        self._exchange = Exchange(self.parameters, self.world.size) if self.world.size > 1 else None
        self._forward = compiled(self.parameters.read, run.compile)
        self._precision = autocast(run.precision, run.device)
        self._factor = guard.skip_factor or torch.inf
        self._optim, self._steps = optim, run.steps
        self._clip = clip_of(optim)
        # What a graph has to read again in every step lies on the device; elsewhere plain numbers are quicker.
        self._scalars = torch.zeros(2, device=run.device) if run.graphed else None
        self._schedule = rows_on(run.device, self._rates_and_shares)
        self._rate: float | Tensor = 0.0
        self._share: float | Tensor = 1.0
        if self._scalars is not None:
            self._rate, self._share = self._scalars.unbind()

    @property
    def averaged(self) -> nn.Module:
        """The network that is validated: the average of the weights where one is kept."""
        return self.parameters.averaged

    def schedule(self, step: int) -> None:
        """Set the learning rate, and the share of the weights in their average, for update `step`."""
        if self._scalars is None:
            self._rate, self._share = self._at(step)
        else:
            self._scalars.copy_(self._schedule(step))

    def _at(self, step: int) -> tuple[float, float]:
        return learning_rate(step, self._steps, self._optim), ema_share(step, self._optim.ema)

    def _rates_and_shares(self, number: int) -> Tensor:
        return torch.tensor([self._at(step) for step in range(number * BLOCK, (number + 1) * BLOCK)])

    def __call__(self, x: Tensor) -> Tensor:
        """The network's answer in the precision of the run, as fp32."""
        with self._precision:
            return self._forward(x).float()

    def backward(self, sr: Tensor, grad: Tensor, *, first: bool = True, last: bool = True) -> None:
        """Collect the gradients of one part of a batch; with the last one, their mean over the processes.

        Args:
            sr: From the forward pass.
            grad: Of `sr`.
            first, last: Which part it is; both where there is one.
        """
        exchange = self._exchange if first and last else None  # of several parts the sum travels
        if exchange is None:
            sr.backward(grad)
            self.parameters.gather(add=not first)
            if last:
                self.world.mean(self.parameters.gradients)
        else:
            exchange.begin()
            sr.backward(grad)
            exchange.finish()

    def apply(self, loss: Tensor) -> Tensor:
        """Clip, decide, update, average, with the gradients that were collected.

        Args:
            loss: The mean of all processes, fp32 0-dim on the device.

        Returns:
            1.0 if the update was skipped, else 0.0: fp32 0-dim on the device, not read by the host; `state` has more.
            It is overwritten by the next call.
        """
        judge_update(self.parameters.gradients, loss, self.state, factor=self._factor, clip=self._clip)
        self.optimizer.step(self._rate, self._share)
        return self.state.skip

    def state_dict(self) -> dict[str, Any]:
        """All but the weights and their average: a checkpoint has files of their own for these."""
        state, now = {"optimizer": self.optimizer.state_dict()}, self.state
        state["guard"] = {"last": now.last, "skipped": now.skipped, "in_a_row": now.in_a_row}
        return state if now.scale is None else {**state, "loss_scale": {"scale": now.scale, "good": now.good}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put it back, bit for bit; weights and average are there already."""
        self.optimizer.load_state_dict(state["optimizer"])
        for name, value in {**state["guard"], **state.get("loss_scale", {})}.items():
            getattr(self.state, name).copy_(value)
        self.parameters.refresh()
