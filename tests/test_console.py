"""Names of files and folders are printed as they are, whatever rich would make of them."""

import re
from pathlib import Path

import numpy as np
import pytest
import suites
from PIL import Image

from eco_fast.cli import main
from eco_fast.commands import doctor

PACKAGE = Path(doctor.__file__).parents[1]
NAME = "[bold]x:tada:[red]"
QUICK = ["--set", "student.options={blocks=1, channels=4}", "--set", "data.patch=8", "--set", "run.valid_every=2"]


class Said:
    """What commands print, without colours, frames and blanks: a folded line is no fault."""

    def __init__(self, capsys: pytest.CaptureFixture[str], on_terminal: bool) -> None:
        self._capsys, self.on_terminal = capsys, on_terminal

    def __call__(self, *arguments: object) -> str:
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        out = self._capsys.readouterr().out
        assert end.value.code == 0, out
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[\s\u2500-\u257f]", "", out)


@pytest.fixture(params=["pipe", "terminal"])
def said(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Said:
    """On a terminal there are bars and a status too."""
    on_terminal = request.param == "terminal"
    if on_terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "200")
    return Said(capsys, on_terminal)


@pytest.fixture
def folder(photos: Path) -> Path:
    """Images, one of them grey, in a folder of that name."""
    Image.fromarray(np.full((60, 60), 99, dtype=np.uint8)).save(photos / f"{NAME}.png")
    return photos.rename(photos.with_name(NAME))


def test_training_evaluating_comparing_enlarging(folder: Path, tmp_path: Path, said: Said) -> None:
    run = tmp_path / "runs" / NAME
    images = ("--train", folder, "--valid", folder)
    trained = said("train", "edsr-tiny", "--mode", "vanilla", *images, "--steps", 2, *QUICK, "--out", run)
    assert f"toRGB:{NAME}.png" in trained and f"WARNING:{folder}is" in trained and f"checkpoint:{run}" in trained
    evaluated = said("eval", run, "--data", folder)
    assert f"validatedon{NAME},so" in evaluated and f"{NAME}5" in evaluated  # with the number of its images
    assert (f"{NAME}:5images" in evaluated) == said.on_terminal  # there is a status, and a bar below
    assert NAME in said("compare", run, "--out", tmp_path / "curves.png")
    enlarged = said("upscale", folder, "--weights", run, "--out", tmp_path / "large" / NAME)
    assert f"large/{NAME}" in enlarged


def test_stores(folder: Path, tmp_path: Path, said: Said) -> None:
    store = tmp_path / f"store{NAME}"
    assert f"{store}arrayimages" in said("prepare", folder, "--scale", 2, "--out", store)
    assert f"toRGB:{NAME}.png" in said("data", store)
    assert f"{store}:5images" in said("prepare", "--verify", store)


def test_what_is_missing_names_its_extra(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor._EXTRAS, "no_such_module", "spandrel")
    assert 'no_such_modulepipinstall"eco-fast[spandrel]"' in said("doctor")


def test_rows_of_benchmarks(capsys: pytest.CaptureFixture[str]) -> None:
    suites._print_figures([{"benchmark": "b", "case": NAME, "hardware": "CPU[i]", "threads": "1", "torch": "2"}])
    printed = capsys.readouterr().out
    assert NAME in printed and "CPU[i]" in printed


def test_no_console_of_another_kind_is_made() -> None:
    """In the whole package but the proof, which prints no names but its own."""
    for file in PACKAGE.rglob("*.py"):
        if file.parent.name != "proof" and file.name != "console.py":
            assert not re.search(r"\bConsole\(", file.read_text(encoding="utf-8")), file
