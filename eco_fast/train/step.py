"""One update of the student: batch, forward, ECO loss with its gradient, clip, optimiser, average."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from eco_fast.config import Config
from eco_fast.errors import UserError
from eco_fast.train.batches import Batch
from eco_fast.train.guard import SkipRule
from eco_fast.train.machine import compiled
from eco_fast.train.optim import Ema, clip_gradients, ema_share, learning_rate, make_optimizer, takes_device_scalars
from eco_fast.train.precision import LossScale, autocast
from eco_fast.train.speed import Budget
from eco_fast.train.world import World
from eco_kernels import eco_l1_with_grad


class StudentStep:
    """The student with all that changes when it is updated."""

    def __init__(self, student: nn.Module, config: Config, world: World | None = None) -> None:
        """Build the optimiser, the average and the guards.

        Args:
            student: On its device. It is compiled as `config.run.compile` says; the module itself stays as it is.
            config: With device and precision resolved.
            world: The processes that share a batch.

        Raises:
            UserError: The batch cannot be split into `optim.accumulate` parts.
        """
        self.student, self.world = student, world or World()
        self.parameters = [p for p in student.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.parameters, config.optim, capturable=config.run.graph)
        self.ema = Ema(student) if config.optim.ema else None
        self.guard = SkipRule(config.guard.skip_factor, config.guard.first_loss, config.run.device)
        self.loss_scale = LossScale(config.run.device) if config.run.precision == "fp16" else None
        self.gradient_norm = torch.zeros((), device=config.run.device)
        self.budget = Budget(config.run.device)
        self._forward = self.world.wrap(compiled(student, config.run.compile))
        self._config = config
        share, rest = divmod(config.data.batch // self.world.size, config.optim.accumulate)
        if rest:
            raise UserError(
                f"data.batch={config.data.batch} on {self.world.size} processes cannot be split into "
                f"optim.accumulate={config.optim.accumulate} parts; change one of them"
            )
        self._weights = torch.full((share,), 1.0 / config.optim.accumulate, device=config.run.device)
        # What a graph has to read anew in every step lies on the device; elsewhere plain numbers are quicker.
        self._scalars = torch.zeros(2, device=config.run.device) if config.run.graph else None
        self._share: float | Tensor = 1.0

    def __call__(self, step: int, batch: Batch) -> tuple[Tensor, Tensor]:
        """Update the weights, unless the skip rule forbids it.

        Returns:
            The mean loss of all processes, and 1.0 if the update was skipped, else 0.0: fp32 0-dim on the device, not
            read by the host.
        """
        self.set_scalars(step)
        return self.update(batch)

    def set_scalars(self, step: int) -> None:
        """Set the learning rate, and the share of the weights in their average, for update `step`."""
        rate: float | Tensor = learning_rate(step, self._config.run.steps, self._config.optim)
        self._share = ema_share(step, self._config.optim.ema)
        if self._scalars is not None:
            self._scalars[0].fill_(rate)
            self._scalars[1].fill_(self._share)
            rate, self._share = self._scalars.unbind()
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def update(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The update itself: work on the device alone."""
        with self.budget.part("student"):
            loss = self.world.mean(self._backward(batch))
        with self.budget.part("optimiser"):
            skip = self._apply(loss)
        return loss, skip

    def _apply(self, loss: Tensor) -> Tensor:
        """Clip, decide, update, average; 1.0 if the update was skipped."""
        if self.loss_scale is not None:
            self.loss_scale.unscale([p.grad for p in self.parameters if p.grad is not None])
        self.gradient_norm = clip_gradients(self.parameters, self._config.optim)
        if self.loss_scale is not None:
            self.loss_scale.update(self.gradient_norm)
        skip = self.guard.judge(loss, self.gradient_norm)
        self._update(skip)
        if self.ema is not None:
            self.ema.update(self._share, skip)
        return skip

    def _backward(self, batch: Batch) -> Tensor:
        """Gradients of this process's part of the batch; the loss, fp32 0-dim."""
        config = self._config
        count = config.optim.accumulate
        weights = None if count == 1 and self.loss_scale is None else self._weights
        if self.loss_scale is not None:
            weights = self._weights * self.loss_scale.scale
        losses = []
        for number, part in enumerate(batch.parts(count), start=1):
            with self._without_exchange(number < count):
                with autocast(config.run.precision, config.run.device):
                    sr = self._forward(part.x).float()
                loss, grad = eco_l1_with_grad(
                    sr.detach(),
                    part.hr,
                    part.centroid,
                    part.alpha,
                    kind=config.loss.kind,
                    scale_factor=config.loss.scale,
                    weights=weights,
                )
                sr.backward(grad)
            losses.append(loss)
        total = losses[0] if count == 1 else torch.stack(losses).sum()
        return total if self.loss_scale is None else total / self.loss_scale.scale

    def _without_exchange(self, wanted: bool) -> AbstractContextManager[object]:
        """Gradients of all parts but the last stay in this process."""
        forward = self._forward
        return forward.no_sync() if wanted and hasattr(forward, "no_sync") else nullcontext()

    def _update(self, skip: Tensor) -> None:
        if takes_device_scalars(self._config.optim.name):
            self.optimizer.found_inf = skip  # type: ignore[attr-defined]  # what GradScaler tells fused optimisers
            self.optimizer.step()
        elif not skip.item():  # other optimisers cannot be told: the host has to wait and decide
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
