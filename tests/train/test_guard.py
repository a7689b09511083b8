"""Updates that do not count: what a learner skips, and when a run ends."""

import math

import pytest
import torch
from torch import nn

from eco_fast.config import Config, GuardConfig
from eco_fast.errors import UserError
from eco_fast.train.guard import refuse_many_skips
from eco_fast.train.learner import Learner


def learner(**guard: float) -> Learner:
    config = Config()
    run = config.run.model_copy(update={"device": "cpu", "precision": "fp32", "compile": "off"})
    made = Learner(nn.Linear(2, 2), config.optim, GuardConfig(**guard), run)  # type: ignore[arg-type]
    made.schedule(0)
    return made


def judged(made: Learner, *losses: float, gradient: float = 1.0) -> list[float]:
    found = []
    for loss in losses:
        made.parameters.gradients[:4] = gradient
        found.append(made.apply(torch.tensor(loss)).item())
    return found


def test_a_jump_is_skipped_and_does_not_become_the_last_loss() -> None:
    made = learner(skip_factor=5.0, first_loss=100.0)
    assert judged(made, 499.0, 2496.0, 2495.0, 1.0, 5.1, 5.0) == [0, 1, 0, 0, 1, 0]
    assert made.state.last.item() == 5.0
    assert made.state.skipped.item() == 2


@pytest.mark.parametrize("factor", [5.0, 0.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_skipped(factor: float, bad: float) -> None:
    made = learner(skip_factor=factor)
    assert judged(made, bad, 1.0, bad, bad) == [1, 0, 1, 1]
    assert judged(made, 1.0, gradient=bad) == [1]
    assert (made.state.skipped.item(), made.state.in_a_row.item()) == (4, 3)


def test_without_a_factor_no_finite_loss_is_skipped() -> None:
    assert judged(learner(skip_factor=0.0, first_loss=1.0), 1e30, 1e-3, 1e30) == [0, 0, 0]


def test_many_in_a_row_end_the_run() -> None:
    guard = GuardConfig(limit=4)
    refuse_many_skips(3, 10, guard, "the last checkpoint is x")
    with pytest.raises(UserError, match=r"last 4 updates before step 11 .* the last checkpoint is x"):
        refuse_many_skips(4, 11, guard, "the last checkpoint is x")


def test_state_goes_into_a_checkpoint() -> None:
    made, other = learner(skip_factor=5.0), learner(skip_factor=5.0)
    judged(made, 2.0, math.nan)
    other.load_state_dict(made.state_dict())
    for ours, theirs in ((made.state.last, other.state.last), (made.state.in_a_row, other.state.in_a_row)):
        assert torch.equal(ours, theirs)
    assert judged(other, 10.1, 10.0) == [1, 0]
    assert other.state.skipped.item() == 2
