"""What a run says: the block before the first step, the line on its time at the end, and `train.log`."""

import io
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from eco_fast import __version__
from eco_fast.config import load_config
from eco_fast.display import Display
from eco_fast.errors import UserError
from eco_fast.train import log_file
from eco_fast.train.log_file import LogFile
from eco_fast.train.loop import Result
from eco_fast.train.speed import LOG, Budget, StepTimes
from eco_fast.train.start import train

TINY = {"student.options": {"blocks": 1, "channels": 4}, "data.patch": 8, "data.batch": 2, "run.device": "cpu"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short paths, as people type them."""
    monkeypatch.chdir(tmp_path)


def run(out: str, display: Display | None = None, **settings: object) -> Result:
    flags: dict[str, Any] = {**TINY, "mode": "vanilla", "data.train": ["photos"], "data.store": "store", "run.out": out}
    flags |= {"run.steps": 4, "run.log_every": 2, "run.threads": 1, "data.valid": "photos"}
    config = load_config("edsr-tiny", flags={**flags, **{k.replace("__", "."): v for k, v in settings.items()}})
    return train(config, display=display)


@pytest.mark.usefixtures("photos")
def test_a_run_says_what_it_trains(capsys: pytest.CaptureFixture[str]) -> None:
    run("runs/teacher")
    capsys.readouterr()
    run("runs/eco", mode="eco", teacher__file="runs/teacher")
    said = capsys.readouterr().out
    block = said[said.index("\ntraining ") : said.index("step 0")]
    assert all(len(line) <= 80 for line in block.splitlines()), block
    for text in (
        "edsr-tiny (blocks 1, channels 4) x2, 1,259 parameters, mode eco",
        "teacher     runs/teacher: EDSR, 1,259 parameters, fp32, stored",
        "images      4, 0.020 megapixels, photos",
        ", resident on cpu, store",
        "photos (4 images, bicubic ",
        "4 steps of 2 patches, 8 x 8 LR pixels, adam, lr 0.001, seed 0",
        "fp32, compile off, 1 CPU thread",
        "folder      runs/eco",
    ):
        assert text in block, block
    assert "batches that" not in said and "checking" not in said


@pytest.mark.usefixtures("photos")
def test_sources_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    run("run", data__source="mapped")
    assert re.search(r"store +[\d.]+ kB, mapped from disk, store\n", capsys.readouterr().out)


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize("terminal", [False, True])
def test_the_log_file_holds_all_that_was_said(terminal: bool) -> None:
    """On a terminal the lines of training too, which it does not keep."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    run("run", Display(console))
    text = Path("run/train.log").read_text()
    head, said = text[: text.index("\n20")], text[text.index("\n20") :]
    for fact in ("command: ", "folder: ", "host: ", f"eco-fast: {__version__}", "torch: ", "device: cpu"):
        assert fact in head
    lines = [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", "", line) for line in said.strip().splitlines()]
    assert [line for line in lines if re.match(r"step [24]/4  loss [\d.]+  .* patches/s  lr", line)]
    assert any(line.startswith("training ") for line in lines) and "WARNING: photos is trained on" in said
    assert lines[-1] == "checkpoint: run/checkpoints/step-00000004"
    if not terminal:
        assert console.file.getvalue().splitlines() == lines  # type: ignore[attr-defined]


@pytest.mark.usefixtures("photos")
def test_a_resumed_run_goes_on_in_its_log_file() -> None:
    run("run", run__checkpoint_every=2, run__valid_every=4)
    first = Path("run/train.log").read_text()
    shutil.rmtree("run/checkpoints/step-00000004")
    train(load_config("run/config.toml"), resume=True)
    text = Path("run/train.log").read_text()
    assert text.startswith(first) and "resuming run/checkpoints/step-00000002" in text[len(first) :]
    train(load_config("run/config.toml"), resume=True)  # a run that is complete
    assert Path("run/train.log").read_text() == text
    config = load_config("run/config.toml")
    train(config, force=True)
    assert "resuming" not in Path("run/train.log").read_text()


@pytest.mark.usefixtures("photos")
def test_why_a_run_ended_is_in_its_log_file() -> None:
    with pytest.raises(UserError):
        run("run", optim__lr=1e30, optim__ema=0, guard__limit=2, run__log_every=1, run__steps=40, run__precision="fp32")
    assert "UserError: the last 2 updates before step 3 were skipped" in Path("run/train.log").read_text()


@pytest.mark.usefixtures("photos")
def test_a_run_that_did_not_start_leaves_no_log_file() -> None:
    with pytest.raises(UserError, match="nowhere"):
        run("run", data__valid="nowhere")
    assert not Path("run/train.log").exists()


@pytest.mark.usefixtures("photos")
def test_a_log_file_that_cannot_be_written_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run/train.log").mkdir(parents=True)
    config = load_config("edsr-tiny", flags={**TINY, "mode": "vanilla", "data.train": ["photos"], "run.out": "run"})
    config = config.model_copy(update={"run": config.run.model_copy(update={"steps": 2})})
    assert train(config, force=True).checkpoint.is_dir()
    assert capsys.readouterr().out.count("cannot write run/train.log: Is a directory; the run goes on without it") == 1


def test_commits_of_the_sources_and_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a folder that is no checkout nothing is said."""
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    for name in ("sources", "work"):
        subprocess.run(["git", "init", "-q", name], check=True)
        (tmp_path / name / "file").write_text(name)
        subprocess.run(["git", "-C", name, "add", "."], check=True)
        subprocess.run(["git", "-C", name, *identity, "commit", "-qm", "one"], check=True)
    commits = [
        subprocess.run(["git", "-C", name, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
        for name in ("sources", "work")
    ]
    (tmp_path / "work" / "file").write_text("changed")
    monkeypatch.setattr(log_file, "_SOURCES", tmp_path / "sources")
    for folder, said in (("work", f"commit of the folder: {commits[1][:12]}-dirty\n"), (".", "")):
        monkeypatch.chdir(tmp_path / folder)
        LogFile(print).open(tmp_path / "log", {}, append=False)
        text = (tmp_path / "log").read_text()
        assert f"commit of eco-fast: {commits[0][:12]}\n" in text
        assert said in text and text.count("\ncommit") == 1 + bool(said)


def test_the_parts_of_a_step_sum_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured against that same step, however long the others take; what only a step of the log does is left out."""
    now = 0.0
    monkeypatch.setattr("eco_fast.train.speed.time.perf_counter", lambda: now)
    times, budget = StepTimes("cpu"), Budget()
    for student in (0.2, 0.6):  # seconds
        with times.part("student"):
            now += 100.0  # a step that is not measured
        times.begin()
        for part, seconds in (("student", student), (LOG, 5.0), ("optimiser", 0.1)):
            with times.part(part):
                now += seconds
        now += 0.1
        times.end()
        whole, parts = times.read()
        assert whole == pytest.approx(1000 * (student + 0.2)) and parts["other"] == pytest.approx(100)
        assert sum(budget.add(whole, parts).values()) == pytest.approx(1, abs=1e-3)
    assert budget.line() == "where the time went: student 66.7%, optimiser 16.7%, other 16.7% (of 2 measured steps)"


def test_parts_that_overlap_are_said_to() -> None:
    """As on a GPU, where the next batch is made while the student computes."""
    budget = Budget()
    assert budget.add(10.0, {"teacher": 6.0, "student": 9.0, "other": 0.0}) == {
        "teacher": 0.6,
        "student": 0.9,
        "other": 0,
    }
    assert budget.line().endswith("(of 1 measured step; parts overlap: batches are made beside the student)")
