"""Guards of a run: updates that do not count, and a student that has died."""

import math

import torch
from torch import Tensor, nn

from eco_fast.errors import UserError
from eco_fast.evaluate.inference import evaluating


class SkipRule:
    """Skips an update whose loss is more than `factor` times that of the last accepted one (Lee & Heo 2024, code).

    A loss or a gradient that is not finite is always skipped. Nothing here waits for the device: the decision, the
    last accepted loss and the counts are tensors there, and part of a checkpoint.
    """

    def __init__(self, factor: float, first_loss: float, device: torch.device | str) -> None:
        """Start without a skipped update.

        Args:
            factor: Of the last accepted loss; 0 skips only what is not finite.
            first_loss: Stands for the loss before the first update, in the units of the loss; 0 for none.
            device: Of the loss.
        """
        self.factor = factor or math.inf
        self.last = torch.tensor(first_loss or math.inf, device=device)
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self.in_a_row = torch.zeros((), dtype=torch.int64, device=device)

    def judge(self, loss: Tensor, gradient_norm: Tensor) -> Tensor:
        """1.0 if this update is to be skipped, else 0.0; fp32 0-dim on the device. Counts it.

        Args:
            loss: Mean loss of the global batch, fp32 0-dim, the same on every rank.
            gradient_norm: Of all gradients, fp32 0-dim.
        """
        # A NaN compares as not larger, so the test is for what is accepted.
        accepted = loss.isfinite() & gradient_norm.isfinite()
        if math.isfinite(self.factor):
            accepted &= loss <= self.last * self.factor
        rejected = ~accepted
        torch.where(accepted, loss, self.last, out=self.last)
        self.skipped.add_(rejected)
        self.in_a_row.add_(1).mul_(rejected)
        return rejected.float()

    def check(self, limit: int, step: int, kept: str) -> int:
        """Updates skipped so far. Waits for the device: call it where the log does.

        Raises:
            UserError: `limit` updates in a row were skipped; `kept` says which checkpoint is good.
        """
        skipped, in_a_row = torch.stack((self.skipped, self.in_a_row)).tolist()
        if in_a_row >= limit:
            raise UserError(
                f"the last {in_a_row} updates before step {step} were skipped: their loss was not finite, or more than "
                f"{self.factor:g} times the last good one; {kept}; lower optim.lr or set optim.clip_norm"
            )
        return skipped

    def state_dict(self) -> dict[str, Tensor]:
        """The last accepted loss and the counts."""
        return {"last": self.last, "skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put them back."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])


class CollapseGuard:
    """Stops a run early whose student answers every patch with one colour.

    It then follows a teacher that does so, or its units have died of too high a learning rate; neither gets better.
    """

    _LEAST, _IN_A_ROW, _SAMPLES = 0.02, 2, 2
    _EARLY = 0.25  # of the run

    def __init__(self, steps: int) -> None:
        self._end = self._EARLY * steps
        self._ratio: Tensor | None = None
        self._count = 0

    def look(self, step: int, student: nn.Module, x: Tensor) -> None:
        """Compare the spread of the student's answer with that of its input `(B, 3, P, P)`; waits for nothing."""
        self._ratio = None
        if step < self._end:
            x = x[: self._SAMPLES]
            with evaluating(student, "fp32", x.device):
                self._ratio = student(x).std(dim=(2, 3)).mean() / x.std(dim=(2, 3)).mean()

    def check(self, step: int, kept: str) -> None:
        """Judge the last look. Waits for the device: call it where the log does.

        Raises:
            UserError: Two looks in a row saw a constant; `kept` says which checkpoint there is.
        """
        if self._ratio is None:
            return
        self._count = self._count + 1 if self._ratio.item() < self._LEAST else 0
        if self._count == self._IN_A_ROW:
            raise UserError(
                f"the student's output is nearly one colour at step {step}: it has collapsed, as with a teacher that "
                f"gives constant images, or with too high a learning rate; {kept}; check the teacher, or lower optim.lr"
            )
