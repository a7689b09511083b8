"""What is said of the time that is left."""

import pytest

from eco_fast.display import _left


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
