"""alpha(t), the weight of the REAL pair over training: 0 is the centroid pair only, 1 is the usual training."""

import math
from collections.abc import Callable

Schedule = Callable[[float], float]


def official(t: float, shift: float = 0.0) -> float:
    """The schedule of the authors' code: a sigmoid, stretched and clipped.

    `u = sigmoid(10 (t - 0.5) - shift)`, `alpha = clip(1.2 (u - 0.5), -0.5, 0.5) + 0.5`. With shift 0, alpha is exactly
    0 until t = 0.2602, 0.5 at t = 0.5, and exactly 1 from t = 0.7398.

    Args:
        t: Progress of training, step / total steps, in [0, 1].
        shift: Moves the rise to later (positive) or earlier steps.
    """
    u = 1.0 / (1.0 + math.exp(-(10.0 * (t - 0.5) - shift)))
    return min(max(1.2 * (u - 0.5), -0.5), 0.5) + 0.5


def linear(t: float, end: float = 1.0) -> float:
    """alpha = t / end, and 1 from t = `end` on."""
    return min(t / end, 1.0)


def cosine(t: float, end: float = 1.0) -> float:
    """Half a cosine from 0 at t = 0 to 1 at t = `end`."""
    return 0.5 - 0.5 * math.cos(math.pi * min(t / end, 1.0))


def make_schedule(name: str, *, shift: float = 0.0, end: float = 1.0, value: float = 0.5) -> Schedule:
    """The schedule `name` as a function of t alone.

    Raises:
        ValueError: `name` is not one of official, linear, cosine, constant.
    """
    schedules: dict[str, Schedule] = {
        "official": lambda t: official(t, shift),
        "linear": lambda t: linear(t, end),
        "cosine": lambda t: cosine(t, end),
        "constant": lambda t: value,
    }
    if name not in schedules:
        raise ValueError(f"unknown alpha schedule {name!r}; one of {', '.join(schedules)}")
    return schedules[name]
