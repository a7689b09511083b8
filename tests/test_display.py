"""Progress where there is no terminal: plain lines."""

import io

import pytest
from rich.console import Console

from eco_fast import display
from eco_fast.display import Display, _left


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a display prints; a second passes between two looks at the clock."""
    clock = iter(range(1000))
    monkeypatch.setattr(display.time, "monotonic", lambda: float(next(clock)))
    return io.StringIO()


def test_a_count_says_a_line_in_ten_seconds_and_one_at_its_end(said: io.StringIO) -> None:
    with Display(Console(file=said)).count("checking") as show:
        for done in range(1, 14):
            show(done, 13)
    assert said.getvalue() == "checking 11/13, 2 s left\nchecking 13/13\n"


def test_a_rate_is_a_count_with_a_status(said: io.StringIO) -> None:
    with Display(Console(file=said)).rate("images") as show:
        show(1, 2, 90.4)
        show(2, 2, 99.6)
    assert said.getvalue() == "images 2/2  100 MB/s\n"


def test_training_says_a_line_for_every_status(said: io.StringIO) -> None:
    """Steps made before it was resumed took none of its time."""
    with Display(Console(file=said)).training(40, 20) as show:
        show(21, None)
        show(22, "loss 1")
        show(40, "loss 2")
    assert said.getvalue() == "step 22/40  loss 1, 18 s left\nstep 40/40  loss 2\n"


@pytest.mark.parametrize(
    ("elapsed", "done", "total", "text"),
    [
        (10, 0, 5, ""),  # nothing is known yet
        (10, 5, 5, ""),
        (10, 1, 5, ", 40 s left"),
        (600, 100, 250, ", 15 min left"),
        (3600, 1000, 125_000, ", 124 h 0 min left"),
    ],
)
def test_time_that_is_left(elapsed: float, done: int, total: int, text: str) -> None:
    assert _left(elapsed, done, total) == text
