"""What did not run cannot pass, wherever it is told."""

import pytest

from eco_fast.proof.outcome import Evidence, NotRun, Outcome, together
from eco_fast.proof.table import TABLE
from eco_fast.proof.worker import perform


@pytest.mark.parametrize(
    ("evidence", "status", "detail"),
    [
        (Evidence(3, detail="three"), "passed", "three"),
        (Evidence(0, detail="no time"), "not run", "no time"),
        (Evidence(3, ("one is wrong",)), "failed", "one is wrong"),
        (Evidence(0, ("nothing could be had",)), "failed", "nothing could be had"),
        (Evidence(9, tuple("abcdefg")), "failed", "a; b; c; d; e; and 2 more"),
    ],
)
def test_status_follows_from_what_was_compared(evidence: Evidence, status: str, detail: str) -> None:
    outcome = Outcome("check", "cpu", evidence)
    assert (outcome.status, outcome.detail) == (status, detail)


def test_what_was_cut_off_does_not_pass() -> None:
    for how in ("timed out", "crashed", "interrupted", "left out"):
        assert Outcome("check", "cuda", Evidence(5), how).status == how


def test_parts_that_compared_nothing_add_nothing() -> None:
    assert Outcome("parts", "cpu", together([Evidence(0), Evidence(0)])).status == "not run"
    assert Outcome("parts", "cpu", together([])).status == "not run"
    assert Outcome("parts", "cpu", together([Evidence(1), Evidence(2, ("x",))])).status == "failed"


def made(tmp_path, monkeypatch: pytest.MonkeyPatch, check) -> dict[str, object]:
    monkeypatch.setattr("eco_fast.proof.worker._function", lambda _: check)
    order = {"check": "machine", "device": "cpu", "attempt": 1, "seconds": 9.0}
    return perform(TABLE[0], order, tmp_path, lambda record: None)


def test_an_error_is_a_fault_with_its_place_and_traceback(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(stage: object) -> Evidence:
        raise ZeroDivisionError("by zero")

    said = made(tmp_path, monkeypatch, crash)
    assert said["compared"] == 0
    (fault,) = said["faults"]  # type: ignore[misc]
    assert fault.startswith("ZeroDivisionError: by zero (") and "test_outcome.py, crash, line " in fault
    assert "Traceback" in str(said["traceback"])


def test_a_check_that_cannot_be_made_says_why(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(stage: object) -> Evidence:
        raise NotRun("there is no such thing here")

    said = made(tmp_path, monkeypatch, refuse)
    assert (said["compared"], said["faults"], said["detail"]) == (0, (), "there is no such thing here")
    assert not list((tmp_path / ".scratch").iterdir())
