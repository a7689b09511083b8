"""Workers that hang, die, raise or print rubbish: each is recorded, and the rest goes on."""

import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from eco_fast.proof.journal import Journal, open_journal
from eco_fast.proof.supervisor import Supervisor
from eco_fast.proof.table import Check

WORKER = """
import json, os, signal, sys, time
from eco_fast.proof import worker
from eco_fast.proof.outcome import Evidence
from eco_fast.proof.stage import Stage
from eco_fast.proof.table import Check


def hangs(stage):
    stage.say("before", value=1)
    time.sleep(600)


def dies(stage):
    stage.say("before", value=1)
    print("these are my last words", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def raises(stage):
    raise RuntimeError("no such thing")


def rubbish(stage):
    print("printed")
    os.system("echo printed by another program")
    os.write(int(os.environ["ANSWERS"]), b"{half a line\\n[1, 2]\\n")
    stage.say("after", value=2)
    return Evidence(1)


def fine(stage):
    stage.say("case", value=3)
    return Evidence(1, detail="fine")


def leaves_a_child(stage):
    if os.fork() == 0:
        time.sleep(600)
    os.kill(os.getpid(), signal.SIGSEGV)


NAMES = ("hangs", "dies", "raises", "rubbish", "fine", "leaves_a_child")
worker.TABLE = [Check(name, 9, 0, ("cpu",), "", "") for name in NAMES]
worker._function = lambda check: globals()[check.name]
own = worker._own_output


def own_output():
    answers = own()
    os.environ["ANSWERS"] = str(answers.fileno())
    return answers


worker._own_output = own_output
worker.main()
"""


def make(out: Path, *names: str, limit: int = 9, seconds: float = 1e9, script: str = WORKER) -> Journal:
    out.mkdir(exist_ok=True)
    (out / "worker.py").write_text(script)
    with open_journal(out / "proof", resume=True) as journal:
        command = [sys.executable, "-u", str(out / "worker.py")]
        supervisor = Supervisor(journal, out / "proof", seconds, lambda: False, Console(quiet=True), command)
        try:
            for name in names:
                supervisor.make(Check(name, limit, 0, ("cpu",), "", ""), "cpu", "[1/1]")
        finally:
            supervisor.close()
    return journal


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", ":".join(path for path in sys.path if path))


@pytest.mark.slow
def test_each_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    journal = make(tmp_path, "hangs", "fine", "dies", "raises", "rubbish", "fine", "leaves_a_child", "fine", limit=3)
    status = {key[0]: outcome.status for key, outcome in journal.outcomes().items()}
    assert status == {
        "hangs": "timed out",
        "fine": "passed",
        "dies": "crashed",
        "raises": "failed",
        "rubbish": "passed",
        "leaves_a_child": "crashed",
    }
    ends = {line["check"]: line for line in journal.lines if "end" in line}
    assert "time.sleep" in ends["hangs"]["log"] or "in hangs" in ends["hangs"]["log"]  # where it hung
    assert "SIGKILL" in ends["dies"]["detail"] and "these are my last words" in ends["dies"]["log"]
    assert "RuntimeError: no such thing" in ends["raises"]["faults"][0] and "in raises" in ends["raises"]["traceback"]
    assert "SIGSEGV" in ends["leaves_a_child"]["detail"]
    said = [line for line in journal.lines if line.get("check") == "rubbish"]
    assert [line["rubbish"] for line in said if "rubbish" in line] == ["{half a line", "[1, 2]"]
    assert [line["value"] for line in said if "case" in line] == [2]
    assert journal.figures(("hangs", "cpu"))[0]["value"] == 1  # what was said before the end is kept


def test_a_worker_that_does_not_start_is_not_started_again(tmp_path: Path) -> None:
    journal = make(tmp_path, "fine", "dies", script="import sys; sys.exit('no such library')")
    fine, dies = journal.outcomes().values()
    assert (fine.status, dies.status) == ("crashed", "left out")
    assert "no worker starts: the worker ended with exit code 1" in dies.detail
    assert "no such library" in (tmp_path / "proof" / "worker.log").read_text()


@pytest.mark.slow
def test_the_end_of_all_time_cuts_off_too(tmp_path: Path) -> None:
    started = time.monotonic()
    journal = make(tmp_path, "fine", "hangs", "fine", limit=500, seconds=6)
    assert time.monotonic() - started < 20
    assert journal.outcomes()["hangs", "cpu"].status == "interrupted"  # --resume gives it all of its own time
    assert ("hangs", "cpu") not in journal.settled(has_gpu=False)
