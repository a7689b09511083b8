"""One update of the student: batch, forward, ECO loss with its gradient, clip, optimiser, average."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from eco_fast.config import Config
from eco_fast.data.patches import input_patches, target_patches
from eco_fast.data.sampler import Plan
from eco_fast.data.store import TrainingSet
from eco_fast.eco.objective import Blend
from eco_fast.train.guard import SkipRule
from eco_fast.train.optim import Ema, clip_gradients, learning_rate, make_optimizer, takes_device_scalars
from eco_kernels import eco_l1_with_grad


class Batch(NamedTuple):
    """What one update reads: the blended input, and the two images of the target, None where its weight is 0."""

    x: Tensor  # (B, 3, P, P) fp32 in [0, 1], channels_last
    hr: Tensor | None  # (B, 3, sP, sP) uint8, channels_last
    centroid: Tensor | None  # like hr
    alpha: Tensor  # weight of hr in the target, 0-dim or (B,)


def make_batch(images: TrainingSet, plan: Plan, patch: int, weights: Blend) -> Batch:
    """Cut the patches of a plan out of the resident images, reading only those whose weight is not 0."""
    device = images.lr.data.device
    plan = plan.to(device)
    return Batch(
        x=input_patches(images, plan, patch, weights.input, weights.needs_lr, weights.needs_centroid_lr),
        hr=target_patches(images.hr, plan, patch, images.scale) if weights.needs_hr else None,
        centroid=target_patches(images.centroid, plan, patch, images.scale) if weights.needs_centroid else None,
        alpha=weights.target.to(device, non_blocking=True),
    )


class StudentStep:
    """The student with all that changes when it is updated."""

    def __init__(self, student: nn.Module, config: Config) -> None:
        self.student = student
        self.parameters = [p for p in student.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.parameters, config.optim)
        self.ema = Ema(student, config.optim.ema) if config.optim.ema else None
        self.guard = SkipRule(config.guard.skip_factor, config.guard.first_loss, config.run.device)
        self._config = config
        self._device_type = config.run.device
        self._autocast = config.run.precision == "bf16"

    def __call__(self, step: int, batch: Batch) -> tuple[Tensor, Tensor]:
        """Update the weights, unless the skip rule forbids it.

        Returns:
            The loss, and 1.0 if the update was skipped, else 0.0: fp32 0-dim on the device, not read by the host.
        """
        config = self._config
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, config.run.steps, config.optim)
        with torch.autocast(self._device_type, torch.bfloat16, enabled=self._autocast):
            sr = self.student(batch.x)
        loss, grad = eco_l1_with_grad(
            sr.detach(), batch.hr, batch.centroid, batch.alpha, kind=config.loss.kind, scale_factor=config.loss.scale
        )
        sr.backward(grad)
        norm = clip_gradients(self.parameters, config.optim)
        skip = self.guard.judge(loss, norm)
        self._update(skip)
        if self.ema is not None:
            self.ema.update(step, skip)
        return loss, skip

    def _update(self, skip: Tensor) -> None:
        if takes_device_scalars(self._config.optim.name):
            self.optimizer.found_inf = skip  # type: ignore[attr-defined]  # what GradScaler tells fused optimisers
            self.optimizer.step()
        elif not skip.item():  # other optimisers cannot be told: the host has to wait and decide
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
