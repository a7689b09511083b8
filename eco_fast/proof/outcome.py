"""What a check says, so that nothing that did not run can pass."""

import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

MAX_NAMED = 5


class NotRun(Exception):
    """A check cannot be made here; its text says why."""


@dataclass(frozen=True)
class Evidence:
    """What a check compared.

    Args:
        compared: Numbers, kernels or steps that were looked at.
        faults: What was wrong, a line each.
        detail: The worst that was found, or why nothing ran.
    """

    compared: int
    faults: tuple[str, ...] = ()
    detail: str = ""


@dataclass(frozen=True)
class Outcome:
    """A check that was asked for. It has no `passed` to be set: that follows from what was compared."""

    name: str
    device: str
    evidence: Evidence
    seconds: float = 0.0

    @property
    def status(self) -> str:
        """ "failed", "passed", or "not run" where nothing was compared."""
        if self.evidence.faults:
            return "failed"
        return "passed" if self.evidence.compared > 0 else "not run"

    @property
    def detail(self) -> str:
        """One line."""
        faults = self.evidence.faults
        if not faults:
            return self.evidence.detail
        more = f"; and {len(faults) - MAX_NAMED} more" if len(faults) > MAX_NAMED else ""
        return "; ".join(faults[:MAX_NAMED]) + more

    def row(self) -> dict[str, object]:
        """Of the CSV file."""
        return {
            "check": self.name,
            "device": self.device,
            "status": self.status,
            "compared": self.evidence.compared,
            "seconds": round(self.seconds, 1),
            "detail": self.detail,
        }


def perform(name: str, device: str, check: Callable[[], Evidence]) -> Outcome:
    """Make a check. An error is a fault of it, with its place, and the next check goes on."""
    started = time.monotonic()
    try:
        evidence = check()
    except NotRun as reason:
        evidence = Evidence(0, detail=str(reason))
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = (str(error).splitlines() or [""])[0]
        evidence = Evidence(
            0, (f"{type(error).__name__}: {text} ({place.filename}, {place.name}, line {place.lineno})",)
        )
    return Outcome(name, device, evidence, time.monotonic() - started)


def together(found: Iterable[Evidence]) -> Evidence:
    """Several comparisons as one; its detail is that of the last."""
    total = Evidence(0)
    for each in found:
        total = replace(
            each, compared=total.compared + each.compared, faults=total.faults + each.faults, detail=each.detail
        )
    return total
