"""`eco-fast doctor --gpu-proof` on a machine without a GPU: all that can be shown there, and no word about more."""

import csv
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

from eco_fast.errors import UserError
from eco_fast.proof.journal import read_journal
from eco_fast.proof.run import gpu_proof
from eco_fast.proof.table import TABLE, choose

QUICK = "machine,loops,kernels-all,kernels-listed"  # of the CPU, in seconds
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")


def proof(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "eco_fast", "doctor", "--gpu-proof", *arguments]


@pytest.mark.slow
def test_killed_twice_and_resumed_it_loses_and_doubles_nothing(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    out, rng = tmp_path / "proof", random.Random()
    for _ in range(2):
        command = proof("--cpu", "--out", str(out), "--only", QUICK, "--resume")
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        time.sleep(rng.uniform(1.0, 7.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = (out / "results.jsonl").read_bytes() if (out / "results.jsonl").exists() else b""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eco_fast.proof.run.choose", lambda only: choose(QUICK))  # what is left of these
        gpu_proof(out, cpu=True, resume=True, pack=tmp_path / "proof.tar.xz")
    after = (out / "results.jsonl").read_bytes()
    assert after.startswith(before)  # nothing lost
    journal = read_journal(out)
    assert [line["n"] for line in journal.lines] == list(range(len(journal.lines)))  # nothing doubled
    assert not journal.under_way()
    ends = [(line["check"], line["device"], line["attempt"]) for line in journal.lines if "end" in line]
    assert len(ends) == len(set(ends))
    outcomes = journal.outcomes()
    assert {key: each.status for key, each in outcomes.items() if key[1] == "cpu"} == {
        (name, "cpu"): "passed" for name in QUICK.split(",")
    }
    assert all(each.status == "not run" for key, each in outcomes.items() if key[1] == "cuda")
    page = (out / "report.md").read_text()
    assert "No GPU took part" in page and all(name in page for name in QUICK.split(","))
    with tarfile.open(tmp_path / "proof.tar.xz") as archive:
        assert {"proof/report.md", "proof/results.jsonl", "proof/checks.csv"} <= set(archive.getnames())


@pytest.mark.slow
@pytest.mark.parametrize("minutes", [0.14, 0.35])
def test_what_there_is_no_time_for_is_named(tmp_path: Path, minutes: float) -> None:
    """Every check is named, or, where a worker has started in time, every check that takes longer."""
    gpu_proof(tmp_path / "proof", minutes=minutes, cpu=True)
    journal = read_journal(tmp_path / "proof")
    left_out = {each.name for each in journal.outcomes().values() if each.status == "left out"}
    assert {"switches", "learns"} <= left_out
    page = (tmp_path / "proof" / "report.md").read_text()
    assert all(f"| {name} | cpu | left out |" in page for name in ("switches", "learns")) and "no time: " in page
    assert {check.name for check in TABLE} == {key[0] for key in journal.outcomes()}


@pytest.mark.slow
def test_a_request_to_stop_writes_the_report(tmp_path: Path) -> None:
    out = tmp_path / "proof"
    process = subprocess.Popen(proof("--out", str(out), "--only", "switches"), stderr=subprocess.PIPE, text=True)
    while not (out / "results.jsonl").exists() or (out / "results.jsonl").read_text().count('"begin"') < 2:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "--resume" in said
    page = (out / "report.md").read_text()
    assert "| machine | cpu | passed |" in page and "| switches | cpu | interrupted |" in page


@pytest.mark.slow
def test_a_folder_that_holds_a_proof_is_not_written_over(tmp_path: Path) -> None:
    gpu_proof(tmp_path, only="kernels-listed")
    with pytest.raises(UserError, match=r"holds a proof; go on with --resume"):
        gpu_proof(tmp_path, only="kernels-listed")


def test_switches_of_the_environment_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With them something else would run under the same names."""
    for name in ("ECO_KERNELS", "TRITON_INTERPRET", "TORCHDYNAMO_DISABLE"):
        with monkeypatch.context() as patch, pytest.raises(UserError, match=f"unset {name}"):
            patch.setenv(name, "1")
            gpu_proof(tmp_path / "proof")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*choose another folder with --out"):
        gpu_proof(tmp_path / "file" / "proof")


def test_an_unknown_check_is_named() -> None:
    with pytest.raises(UserError, match=r"there is no check lops; did you mean loops\?"):
        choose("machine,lops")


def test_the_supervisor_does_without_torch() -> None:
    code = "import sys, eco_fast.proof.run; print([m for m in ('torch', 'triton', 'numpy') if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert result.stdout.strip() == "[]"


@pytest.mark.slow
def test_everything_that_needs_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    long = ("switches", "kernels-compiled")  # test_parity.py makes them
    checks = tuple(check for check in TABLE if check.name not in long)
    monkeypatch.setattr("eco_fast.proof.run.choose", lambda only: checks)
    gpu_proof(tmp_path / "proof")
    with (tmp_path / "proof" / "checks.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["status"] for row in rows if row["device"] == "cuda"} == {"not run"}
    status = {row["check"]: row["status"] for row in rows if row["device"] == "cpu"}
    assert set(status) == {check.name for check in checks if "cpu" in check.devices}
    assert {check for check, state in status.items() if state != "passed"} <= {"learns"}
