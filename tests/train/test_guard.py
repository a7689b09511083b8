"""The skip rule."""

import math

import pytest
import torch

from eco_fast.errors import UserError
from eco_fast.train.guard import SkipRule


def judged(rule: SkipRule, *losses: float, norm: float = 1.0) -> list[float]:
    return [rule.judge(torch.tensor(loss), torch.tensor(norm)).item() for loss in losses]


def test_a_jump_is_skipped_and_does_not_become_the_last_loss() -> None:
    rule = SkipRule(5.0, 100.0, "cpu")
    assert judged(rule, 499.0, 2496.0, 2495.0, 1.0, 5.1, 5.0) == [0, 1, 0, 0, 1, 0]
    assert rule.last.item() == 5.0
    assert rule.skipped.item() == 2


@pytest.mark.parametrize("factor", [5.0, 0.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_skipped(factor: float, bad: float) -> None:
    rule = SkipRule(factor, math.inf, "cpu")
    assert judged(rule, bad, 1.0, bad, bad) == [1, 0, 1, 1]
    assert judged(rule, 1.0, norm=bad) == [1]
    assert (rule.skipped.item(), rule.in_a_row.item()) == (4, 3)


def test_without_a_factor_no_finite_loss_is_skipped() -> None:
    rule = SkipRule(0.0, 1.0, "cpu")
    assert judged(rule, 1e30, 1e-3, 1e30) == [0, 0, 0]


def test_many_in_a_row_end_the_run() -> None:
    rule = SkipRule(5.0, 100.0, "cpu")
    judged(rule, 1.0, *[math.nan] * 3)
    assert rule.check(4, 10, "the last checkpoint is x") == 3
    judged(rule, 9.0)
    with pytest.raises(UserError, match=r"last 4 updates before step 11 .* the last checkpoint is x"):
        rule.check(4, 11, "the last checkpoint is x")
    judged(rule, 1.0)
    assert rule.check(1, 12, "") == 4


def test_state_goes_into_a_checkpoint() -> None:
    rule, other = SkipRule(5.0, 100.0, "cpu"), SkipRule(5.0, 100.0, "cpu")
    judged(rule, 2.0, math.nan)
    other.load_state_dict(rule.state_dict())
    assert (other.last.item(), other.skipped.item(), other.in_a_row.item()) == (2.0, 1, 1)
