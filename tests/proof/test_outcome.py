"""What did not run cannot pass, wherever it is told."""

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest

from eco_fast.errors import UserError
from eco_fast.proof import checks, run
from eco_fast.proof.checks import Check, gpu_checks, with_gpu
from eco_fast.proof.outcome import Evidence, NotRun, Outcome, perform, together
from eco_fast.proof.report import Proof, write_report


def refuse() -> Evidence:
    raise NotRun("there is no such thing here")


def crash() -> Evidence:
    raise ZeroDivisionError("by zero")


@pytest.mark.parametrize(
    ("check", "status", "detail"),
    [
        (lambda: Evidence(3, detail="three"), "passed", "three"),
        (lambda: Evidence(0, detail="nobody came"), "not run", "nobody came"),
        (lambda: Evidence(3, ("one is wrong",)), "failed", "one is wrong"),
        (lambda: Evidence(0, ("nothing could be had",)), "failed", "nothing could be had"),
        (lambda: Evidence(9, tuple("abcdefg")), "failed", "a; b; c; d; e; and 2 more"),
        (refuse, "not run", "there is no such thing here"),
    ],
)
def test_status_follows_from_what_was_compared(check, status: str, detail: str) -> None:
    outcome = perform("check", "cpu", check)
    assert (outcome.status, outcome.detail) == (status, detail)


def test_an_error_is_a_fault_with_its_place() -> None:
    outcome = perform("check", "cpu", crash)
    assert outcome.status == "failed"
    assert (
        outcome.detail.startswith("ZeroDivisionError: by zero (") and "test_outcome.py, crash, line " in outcome.detail
    )


def test_parts_that_compared_nothing_add_nothing() -> None:
    assert Outcome("parts", "cpu", together([Evidence(0), Evidence(0)])).status == "not run"
    assert Outcome("parts", "cpu", together([])).status == "not run"
    assert Outcome("parts", "cpu", together([Evidence(1), Evidence(2, ("x",))])).status == "failed"


def test_if_nothing_ran_nothing_is_told_to_be_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All checks are made, and none of them compares anything."""

    def hollow(found: Iterator[Check]) -> list[Check]:
        return [check._replace(run=lambda: Evidence(0, detail="did nothing")) for check in found]

    offline, gpu = checks.offline_checks, checks.gpu_checks
    monkeypatch.setattr(run, "offline_checks", lambda out, scratch: hollow(offline(out, scratch)))
    monkeypatch.setattr(run, "gpu_checks", lambda scratch: hollow(gpu(scratch)))
    monkeypatch.setattr(run, "benchmarks", lambda out: {"kernels": "skipped: no GPU"})
    proof = run.gpu_proof(tmp_path / "proof")
    assert len(proof.outcomes) > 15
    told = capsys.readouterr().out + "".join(file.read_text() for file in (tmp_path / "proof").iterdir())
    assert "did nothing" in told
    assert "passed" not in told.lower()


def test_without_a_gpu_nothing_of_one_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    outcomes = [perform(*check) for check in gpu_checks(tmp_path)]
    assert {each.status for each in outcomes} == {"not run"}
    assert {each.device for each in outcomes} == {"cuda"}
    states = checks.benchmarks(tmp_path)
    assert states and all(state.startswith("skipped: ") for state in states.values())
    report = write_report(Proof(outcomes, states, 1.0), tmp_path).read_text()
    assert "No GPU took part" in report
    assert "passed" not in report


def test_a_gpu_that_does_not_work_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch says that there is one, and everything that touches it breaks."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    found = list(gpu_checks(tmp_path))
    outcomes = [perform(*check) for check in found if "packed" not in check.name]
    assert not any(each.status == "passed" for each in outcomes)
    assert any(each.status == "failed" for each in outcomes)


def test_with_a_gpu_the_check_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert perform("check", "cuda", with_gpu(lambda: Evidence(5))).status == "passed"


def test_a_failure_ends_with_an_error_and_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "offline_checks", lambda out, scratch: [Check("sums", "cpu", lambda: Evidence(1, ("2",)))])
    monkeypatch.setattr(run, "gpu_checks", lambda scratch: [])
    monkeypatch.setattr(run, "benchmarks", lambda out: {"step": "failed: exit code 1", "data": "skipped: no files"})
    with pytest.raises(UserError, match=r"failed: sums \(cpu\), bench step; see "):
        run.gpu_proof(tmp_path / "proof")
    with (tmp_path / "proof" / "checks.csv").open(newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["failed"]
    assert "bench step" not in (tmp_path / "proof" / "report.md").read_text().split("## Checks")[1].split("##")[0]


def test_switches_of_the_environment_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With them something else would run under the same names."""
    for name in ("ECO_KERNELS", "TRITON_INTERPRET", "TORCHDYNAMO_DISABLE"):
        with monkeypatch.context() as patch, pytest.raises(UserError, match=f"unset {name}"):
            patch.setenv(name, "1")
            run.gpu_proof(tmp_path / "proof")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write to .*choose another folder with --out"):
        run.gpu_proof(tmp_path / "file" / "proof")


def test_the_report_shows_what_a_suite_measured(tmp_path: Path) -> None:
    (tmp_path / "step.csv").write_text(
        "benchmark,case,ms_per_step,ratio,memory_mb,final_loss,steps\n"
        "waterfall,plain PyTorch,20.0,1.0,,9.5,40\nwaterfall,+ bf16,10.0,2.0,,9.6,40\n"
    )
    (tmp_path / "step.png").write_bytes(b"")
    proof = Proof([Outcome("sums", "cuda", Evidence(4))], {"step": "ran", "data": "skipped: no files"}, 61.0)
    report = write_report(proof, tmp_path).read_text()
    assert "| + bf16 | 10.0 | 2.0 | 9.6 | 40 |" in report  # memory is of no row, and so no column
    assert "![step](step.png)" in report
    assert "checks: 1 passed; benchmarks: 1 of 2 ran. 1.0 minutes." in report
    assert "No GPU took part" not in report
