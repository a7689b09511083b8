"""Guards of a run: updates that do not count, and a student that has died."""

import math

from torch import Tensor, nn

from eco_fast.config import GuardConfig
from eco_fast.errors import UserError
from eco_fast.evaluate.inference import evaluating


def refuse_many_skips(in_a_row: int, step: int, guard: GuardConfig, kept: str) -> None:
    """End a run whose updates no longer count.

    An update is skipped whose loss is more than `guard.skip_factor` times that of the last accepted one (Lee & Heo
    2024, code), or is not finite; see `eco_kernels.judge_update`.

    Args:
        in_a_row: Skipped updates before `step`.
        step: Where the run is.
        guard: Settings.
        kept: Says which checkpoint is good.

    Raises:
        UserError: There are `guard.limit` of them.
    """
    if in_a_row >= guard.limit:
        raise UserError(
            f"the last {in_a_row} updates before step {step} were skipped: their loss was not finite, or more than "
            f"{guard.skip_factor or math.inf:g} times the last good one; {kept}; lower optim.lr or set optim.clip_norm"
        )


class CollapseGuard:
    """Stops a run early whose student answers every patch with one colour.

    It then follows a teacher that does so, or its units have died of too high a learning rate; neither gets better.
    """

    _LEAST, _IN_A_ROW, _SAMPLES = 0.02, 2, 2
    _EARLY = 0.25  # of the run

    def __init__(self, steps: int) -> None:
        self._end = self._EARLY * steps
        self._count = 0

    def look(self, step: int, student: nn.Module, x: Tensor) -> Tensor:
        """The spread of the student's answer over that of its input `(B, 3, P, P)`; NaN where it is too late to look.

        0-dim on the device of `x`; nothing is waited for.
        """
        if step >= self._end:
            return x.new_full((), math.nan)
        x = x[: self._SAMPLES]
        with evaluating(student, "fp32", x.device):
            return student(x).std(dim=(2, 3)).mean() / x.std(dim=(2, 3)).mean()

    def check(self, ratio: float, step: int, kept: str) -> None:
        """Judge what a look gave.

        Raises:
            UserError: Two looks in a row saw a constant; `kept` says which checkpoint there is.
        """
        self._count = self._count + 1 if ratio < self._LEAST else 0
        if self._count == self._IN_A_ROW:
            raise UserError(
                f"the student's output is nearly one colour at step {step}: it has collapsed, as with a teacher that "
                f"gives constant images, or with too high a learning rate; {kept}; check the teacher, or lower optim.lr"
            )
