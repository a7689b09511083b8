"""What one update of a method does with a batch, and with which learners."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from eco_fast.config import Config
from eco_fast.errors import UserError
from eco_fast.train.batches import Batch
from eco_fast.train.graph import Graphs
from eco_fast.train.lane import slot_of
from eco_fast.train.learner import Learner
from eco_fast.train.speed import StepTimes
from eco_fast.train.world import World
from eco_kernels import eco_loss_with_grad


class Update(Protocol):
    """One update, as the loop, a CUDA graph and a checkpoint see it."""

    learners: Mapping[str, Learner]
    """By name; "student" is the one that is validated and exported. A checkpoint holds all of them."""
    times: StepTimes

    def schedule(self, step: int) -> None:
        """Set what changes from step to step: on the host, before the update."""
        ...

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Do the update by work on the device alone: a CUDA graph may hold it.

        Returns:
            The mean loss of all processes, and 1.0 if the update was skipped, else 0.0: fp32 0-dim on the device, not
            read by the host.
        """
        ...


def make_update(config: Config, student: nn.Module, world: World | None = None) -> Update:
    """The update of a run and its learners.

    Args:
        config: With device and precision resolved.
        student: On its device.
        world: The processes that share a batch.

    Raises:
        UserError: The batch cannot be split into `optim.accumulate` parts, or there is no such optimiser.
    """
    side = config.data.patch
    example = torch.zeros((1, 3, side, side), device=config.run.device)
    return EcoUpdate(config, Learner(student, config.optim, config.guard, config.run, world, example))


class GraphedUpdate:
    """An update as a CUDA graph. What changes from step to step is read on the device: batch, rate, share."""

    def __init__(self, update: Update, device: torch.device | str, say: Callable[[str], None] = print) -> None:
        """Nothing is captured yet.

        Args:
            update: Its learners are built for a graph.
            device: Where they are.
            say: Told why the capture failed, if it does.
        """
        self.learners, self.times = update.learners, update.times
        self.graphs = Graphs(
            "this update", device, say, stay=True, priority=-1, undo=self._undo
        )  # before the next batch
        self._update, self._slot = update, 0

    def schedule(self, step: int) -> None:
        """See `Update`."""
        self._update.schedule(step)
        self._slot = slot_of(step)

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `Update`. The results are overwritten by the next call but one."""
        kind = tuple(tensor is not None for tensor in batch)
        with self.times.part("student") if self.graphs.replays(self._slot, kind) else nullcontext():
            return self.graphs(self._slot, kind, self._work, *batch)

    def _work(self, *batch: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._update(Batch(*batch))  # type: ignore[arg-type]

    def _undo(self) -> None:
        for learner in self.learners.values():
            learner.parameters.forget()


class EcoUpdate:
    """Forward, ECO loss with its gradient, backward, then the student's own update."""

    def __init__(self, config: Config, student: Learner) -> None:
        """Split the batch.

        Raises:
            UserError: It cannot be split into `optim.accumulate` parts.
        """
        count, run = config.optim.accumulate, config.run
        share, rest = divmod(config.data.batch // student.world.size, count)
        if rest:
            raise UserError(
                f"data.batch={config.data.batch} on {student.world.size} processes cannot be split into "
                f"optim.accumulate={count} parts; change one of them"
            )
        self.learners: Mapping[str, Learner] = {"student": student}
        self.times = StepTimes(run.device)
        self._student, self._loss, self._parts = student, config.loss, count
        whole = count == 1 and student.state.scale is None
        self._weights = None if whole else torch.full((share,), 1.0 / count, device=run.device)

    def schedule(self, step: int) -> None:
        """See `Update`."""
        self._student.schedule(step)

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `Update`."""
        with self.times.part("student"):
            loss = self._student.world.mean(self._backward(batch))
        with self.times.part("optimiser"):
            skip = self._student.apply(loss)
        return loss, skip

    def _backward(self, batch: Batch) -> Tensor:
        """Gradients of this process's share of the batch, part by part; its loss, fp32 0-dim."""
        student, losses = self._student, []
        scale = student.state.scale
        weights = self._weights if scale is None or self._weights is None else self._weights * scale
        for number, part in enumerate(batch.parts(self._parts), start=1):
            sr = student(part.x)
            loss, grad = self.loss(sr, part, weights)
            student.backward(sr, grad, first=number == 1, last=number == self._parts)
            losses.append(loss)
        total = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
        return total if scale is None else total / scale

    def loss(self, sr: Tensor, batch: Batch, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """The loss of a batch, and its gradient with respect to `sr`, where the network's backward pass begins."""
        return eco_loss_with_grad(
            sr.detach(),
            batch.hr,
            batch.centroid,
            batch.alpha,
            kind=self._loss.kind,
            scale_factor=self._loss.scale,
            weights=weights,
        )
