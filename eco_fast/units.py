"""Figures as people read them: `40.5 s`, `3.5 h`, `58.6 days`, `12.3 GB`."""

_TIMES = ((86_400.0, "days"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "us"))
_MANY = 2.0  # of a unit of time before it is used, above seconds: 90 s rather than 1.5 min
_SIZES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def duration(seconds: float) -> str:
    """A time with three digits, in the unit that suits it.

    Args:
        seconds: 0 or more.
    """
    if seconds == 0:
        return "0 s"
    for size, unit in _TIMES:
        if seconds >= (_MANY * size if size > 1 else size):
            return f"{digits(seconds / size)} {unit}"
    return f"{digits(seconds * 1e6)} us"


def clock(seconds: float) -> str:
    """A time that runs: `0:40`, `12:03`, `3:25:00`, `58 d 14 h`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours_of_day = divmod(hours, 24)
    if days >= 4:
        return f"{days} d {hours_of_day} h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def counted(number: int, thing: str) -> str:
    """A number of things, by the word for one: `1 step`, `2,000 steps`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def size(count: float) -> str:
    """A number of bytes, powers of ten."""
    for unit_size, unit in _SIZES:
        if count >= unit_size:
            return f"{digits(count / unit_size)} {unit}"
    return f"{count:.0f} bytes"


def digits(value: float) -> str:
    """A number with three digits, whole from a hundred on: `1,058`, `48.6`, `0.30`."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
