"""Times and sizes as people read them."""

import pytest

from eco_fast.units import clock, counted, duration, size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (2.5e-6, "2.50 us"),
        (0.0123, "12.3 ms"),
        (0.1, "100 ms"),
        (1.5, "1.50 s"),
        (40.495, "40.5 s"),
        (119, "119 s"),
        (125, "2.08 min"),
        (3600, "60.0 min"),
        (7200, "2.00 h"),
        (1406.1 * 3600, "58.6 days"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (40.4, "0:40"), (723, "12:03"), (12_300, "3:25:00"), (58.6 * 86_400, "58 d 14 h")],
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(12, "12 bytes"), (4096, "4.10 kB"), (2.5e8, "250 MB"), (1.23e10, "12.3 GB")]
)
def test_size(count: float, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(("number", "text"), [(0, "0 steps"), (1, "1 step"), (2000, "2,000 steps")])
def test_counted(number: int, text: str) -> None:
    assert counted(number, "step") == text
