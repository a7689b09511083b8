"""What a check says, so that nothing that did not run can pass."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

CUT_OFF = ("timed out", "crashed", "interrupted", "left out")
"""How a check ends that could not say anything."""

_MOST_NAMED = 5  # faults in a line


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
    """A check that was asked for. It has no `passed` to be set: that follows from what was compared.

    Args:
        name: Of the check.
        device: "cuda" or "cpu".
        evidence: What it compared; nothing where it was cut off.
        cut_off: One of `CUT_OFF`, or nothing.
        seconds: That it took.
    """

    name: str
    device: str
    evidence: Evidence
    cut_off: str = ""
    seconds: float = 0.0

    @property
    def status(self) -> str:
        """How it was cut off, or "failed", "passed", or "not run" where nothing was compared."""
        if self.cut_off:
            return self.cut_off
        if self.evidence.faults:
            return "failed"
        return "passed" if self.evidence.compared > 0 else "not run"

    @property
    def is_bad(self) -> bool:
        """Whether something is wrong with what was checked: it was not merely left out."""
        return self.status in ("failed", "timed out", "crashed")

    @property
    def detail(self) -> str:
        """The text as one line."""
        faults = self.evidence.faults
        if not faults:
            return self.evidence.detail
        more = f"; and {len(faults) - _MOST_NAMED} more" if len(faults) > _MOST_NAMED else ""
        return "; ".join(faults[:_MOST_NAMED]) + more

    def row(self) -> dict[str, object]:
        """The outcome as a line of the table of checks."""
        return {
            "check": self.name,
            "device": self.device,
            "status": self.status,
            "compared": self.evidence.compared,
            "seconds": round(self.seconds, 1),
            "detail": self.detail,
        }


def together(found: Iterable[Evidence]) -> Evidence:
    """Several comparisons as one piece of evidence, with the detail of the last."""
    total = Evidence(0)
    for each in found:
        total = replace(
            each, compared=total.compared + each.compared, faults=total.faults + each.faults, detail=each.detail
        )
    return total
