"""`eco-fast compare`: several runs in one table and one picture."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eco_fast.cli import main
from eco_fast.commands.compare import compare_runs, read_curve
from eco_fast.errors import UserError


def valid(step: int, psnr_y: float, minutes: float) -> dict[str, Any]:
    return {"kind": "valid", "step": step, "psnr_y": psnr_y, "time": 1e9 + 60 * minutes}


def train(step: int, minutes: float) -> dict[str, Any]:
    return {"kind": "train", "step": step, "loss": 1.0, "time": 1e9 + 60 * minutes}


def make_run(folder: Path, records: Iterable[dict[str, Any]], tail: str = "") -> Path:
    folder.mkdir(parents=True)
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(text + tail, encoding="utf-8")
    return folder


def test_table_and_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = make_run(tmp_path / "vanilla", [train(100, 0), valid(100, 30.1, 1), valid(2000, 31.25, 3), train(2100, 3.5)])
    b = make_run(tmp_path / "eco [x]", [train(100, 0), valid(1000, 32.5, 2), valid(2000, 32.25, 4)])
    with pytest.raises(SystemExit) as stop:
        main(["compare", str(a), str(b), "--out", str(tmp_path / "new" / "c.png")])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if "│" in line]
    assert ["vanilla", "31.250", "2,000", "31.250", "2,100", "3.5"] in rows
    assert ["eco [x]", "32.500", "1,000", "32.250", "2,000", "4.0"] in rows
    with Image.open(tmp_path / "new" / "c.png") as picture:
        assert picture.format == "PNG" and picture.width > picture.height > 300
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["c.png"]


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / folder / "run", [valid(1, 30.0, 0)]) for folder in "ab"]
    assert list(compare_runs(runs, tmp_path / "c.png")) == [str(run) for run in runs]
    with pytest.raises(UserError, match="a run is named twice"):
        compare_runs([runs[0], runs[0]], tmp_path / "c.png")


def test_a_resumed_run_is_one_curve(tmp_path: Path) -> None:
    before = [train(100, 0), valid(100, 30.0, 1), train(200, 2), valid(200, 31.0, 3)]
    after = [train(150, 600), valid(200, 31.5, 601), train(300, 602), valid(300, 32.0, 603)]
    curve = read_curve(make_run(tmp_path / "run", before + after, tail='{"kind": "tra'))
    assert curve.steps == [100, 200, 300]
    assert curve.psnr_y == [30.0, 31.5, 32.0]
    assert curve.minutes == pytest.approx([1, 5, 7])  # not the hours in between
    assert (curve.last_step, curve.duration) == (300, pytest.approx(7))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"run is no run: cannot read .*metrics\.jsonl \(No such file"),
        (b"", "run has no validation yet; train longer or leave it out"),
        (json.dumps(train(1, 0)).encode() + b"\n", "run has no validation yet"),
        (b'{"kind": "valid", "step": 1}\n', r"metrics\.jsonl is damaged in line 1; remove that line"),
        (json.dumps(valid(1, 30, 0)).encode() + b"\n[1]\n", r"metrics\.jsonl is damaged in line 2"),
        (json.dumps(valid(1, 30, 0)).encode() + b"\nno JSON\n", r"metrics\.jsonl is damaged in line 2"),
        (b"\xff\xfe\n", r"metrics\.jsonl is no text"),
    ],
)
def test_runs_without_figures_are_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    if content is not None:
        (run / "metrics.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        compare_runs([run], tmp_path / "c.png")
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "c.png").exists()


def test_a_picture_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [valid(1, 30.0, 0)])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*c\.png: .*; name another file with --out"):
        compare_runs([run], tmp_path / "file" / "c.png")
