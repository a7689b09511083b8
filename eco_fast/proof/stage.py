"""What a check is given: where it runs, how long it may take, and a way to say a figure at once."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Stage:
    """The surroundings of one check.

    Args:
        device: "cuda" or "cpu".
        out: Folder of the proof; what is written there stays.
        scratch: Empty folder that goes with the check.
        seconds: After these the check is cut off.
        say: Takes a figure; it is on disk when the call returns to the supervisor.
    """

    def __init__(self, device: str, out: Path, scratch: Path, seconds: float, say: Callable[[dict[str, Any]], None]):
        self.device, self.out, self.scratch = device, out, scratch
        self._end, self._say = time.monotonic() + seconds, say

    @property
    def small(self) -> bool:
        """Whether small problems are enough: on a CPU, which shows that a measurement runs and no more."""
        return self.device != "cuda"

    @property
    def seconds(self) -> float:
        """Seconds until the check is cut off."""
        return self._end - time.monotonic()

    def say(self, case: str, **figures: object) -> None:
        """Hand out the figures of one case; those that are None are left out."""
        self._say({"case": case, **{name: value for name, value in figures.items() if value is not None}})
