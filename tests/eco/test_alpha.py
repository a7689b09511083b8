"""The schedules of alpha."""

import pytest

from eco_fast.eco.alpha import cosine, linear, make_schedule, official


def test_the_official_schedule_has_three_phases() -> None:
    assert all(official(t / 1000) == 0.0 for t in range(261))
    assert official(0.2602) == pytest.approx(0.0, abs=1e-3)
    assert official(0.265) > 0.0
    assert official(0.5) == 0.5
    assert official(0.735) < 1.0
    assert all(official(t / 1000) == 1.0 for t in range(740, 1001))


def test_a_positive_shift_is_later() -> None:
    assert official(0.5, shift=1.0) < official(0.5) < official(0.5, shift=-1.0)


@pytest.mark.parametrize("schedule", [linear, cosine])
def test_linear_and_cosine_reach_one_at_their_end(schedule) -> None:
    assert schedule(0.0, 0.4) == 0.0
    assert schedule(0.2, 0.4) == pytest.approx(0.5)
    assert schedule(0.4, 0.4) == 1.0
    assert schedule(0.9, 0.4) == 1.0


@pytest.mark.parametrize("name", ["official", "linear", "cosine"])
def test_schedules_rise_from_zero_to_one(name: str) -> None:
    schedule = make_schedule(name)
    values = [schedule(t / 200) for t in range(201)]
    assert values == sorted(values)
    assert (values[0], values[-1]) == (0.0, 1.0)


def test_constant_and_unknown() -> None:
    assert make_schedule("constant", value=0.3)(0.9) == 0.3
    with pytest.raises(ValueError, match="sigmoid"):
        make_schedule("sigmoid")
