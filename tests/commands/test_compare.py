"""`eco-fast compare`: several runs in one table and one picture."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eco_fast.cli import main
from eco_fast.commands import compare as command
from eco_fast.commands.compare import Curve, compare_runs, read_curve
from eco_fast.console import plain_console
from eco_fast.errors import UserError
from eco_fast.models import build


def valid(step: int, psnr_y: float, minutes: float, **more: Any) -> dict[str, Any]:
    return {"kind": "valid", "step": step, "psnr_y": psnr_y, "time": 1e9 + 60 * minutes, **more}


def train(step: int, minutes: float) -> dict[str, Any]:
    return {"kind": "train", "step": step, "loss": 1.0, "time": 1e9 + 60 * minutes}


def make_run(folder: Path, records: Iterable[dict[str, Any]], tail: str = "", config: str = "") -> Path:
    folder.mkdir(parents=True)
    if config:
        (folder / "config.toml").write_text(config)
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(text + tail, encoding="utf-8")
    return folder


def rows(printed: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if "│" in line]


def of(scale: int, mode: str = "eco", network: str = "edsr-tiny", valid: str = '"Set5"', options: str = "") -> str:
    """A run's settings."""
    return (
        f'scale = {scale}\nmode = "{mode}"\n[student]\nname = "{network}"\n[student.options]\n{options}\n'
        f'[teacher]\nfile = "runs/big"\n[data]\nvalid = {valid}\n'
    )


def test_table_and_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = make_run(tmp_path / "vanilla", [train(100, 0), valid(100, 30.1, 1), valid(2000, 31.25, 3), train(2100, 3.5)])
    b = make_run(tmp_path / "eco [x]", [train(100, 0), valid(1000, 32.5, 2), valid(2000, 32.25, 4)])
    with pytest.raises(SystemExit) as stop:
        main(["compare", str(a), str(b), "--out", str(tmp_path / "new" / "c.png")])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert ["vanilla", "31.250", "2,000", "31.250", "2,100", "2,000", "3.50 min"] in rows(printed)
    assert ["eco [x]", "32.500", "1,000", "32.250", "2,000", "1,000", "4.00 min"] in rows(printed)
    assert "31.250 dB is the last figure of vanilla" in printed
    with Image.open(tmp_path / "new" / "c.png") as picture:
        assert picture.format == "PNG" and picture.width > picture.height > 300
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["c.png"]


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / folder / "run", [valid(1, 30.0, 0)]) for folder in "ab"]
    (panel,) = compare_runs(runs, tmp_path / "c.png")
    assert list(panel.curves) == [str(run) for run in runs]
    with pytest.raises(UserError, match="is named twice"):
        compare_runs([runs[0], runs[0]], tmp_path / "c.png")


def test_a_resumed_run_is_one_curve(tmp_path: Path) -> None:
    before = [train(100, 0), valid(100, 30.0, 1), train(200, 2), valid(200, 31.0, 3)]
    after = [train(150, 600), valid(200, 31.5, 601), train(300, 602), valid(300, 32.0, 603)]
    curve = read_curve(make_run(tmp_path / "run", before + after, tail='{"kind": "tra'))
    assert curve.steps == [100, 200, 300]
    assert curve.psnr_y == [30.0, 31.5, 32.0]
    assert curve.minutes == pytest.approx([1, 5, 7])  # not the hours in between
    assert (curve.last_step, curve.duration) == (300, pytest.approx(7))


def test_only_like_is_compared_with_like(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scales, sets and other images of one name are kept apart; an old run goes with the set that it was made with."""
    sets = {
        "a": (2, [valid(100, 36.0, 1, set="Set5", bicubic=33.67)]),
        "other-scale": (4, [valid(100, 30.0, 1, set="Set5", bicubic=28.42)]),
        "other-set": (2, [valid(100, 31.0, 1, set="Set14", bicubic=30.24)]),
        "other-images": (2, [valid(100, 35.0, 1, set="Set5", bicubic=33.90)]),
        "old": (2, [valid(100, 35.5, 1)]),
        "b": (2, [valid(100, 37.0, 1, set="Set5", bicubic=33.6701)]),
    }
    runs = [make_run(tmp_path / name, records, config=of(scale)) for name, (scale, records) in sets.items()]
    panels = compare_runs(runs, tmp_path / "c.png")
    assert [(panel.title, list(panel.curves)) for panel in panels] == [
        ("x2, Set5, bicubic 33.670 dB", ["a", "old", "b"]),
        ("x4, Set5, bicubic 28.420 dB", ["other-scale"]),
        ("x2, Set14, bicubic 30.240 dB", ["other-set"]),
        ("x2, Set5, bicubic 33.900 dB", ["other-images"]),
    ]
    printed = capsys.readouterr().out
    assert [printed.index(panel.title) for panel in panels] == sorted(printed.index(panel.title) for panel in panels)
    with Image.open(tmp_path / "c.png") as four:
        compare_runs(runs[:1], tmp_path / "one.png")
        assert four.height > 3 * Image.open(tmp_path / "one.png").height


def test_several_validation_sets(tmp_path: Path) -> None:
    def records(*names: str) -> list[dict[str, Any]]:
        return [valid(step, 30.0 + i + step, 1, set=name) for step in (1, 2) for i, name in enumerate(names)]

    a = make_run(tmp_path / "a", records("own", "Set5", "Set14"), config=of(2))
    b = make_run(tmp_path / "b", records("Set14", "Set5"), config=of(2))
    (panel,) = compare_runs([a, b], tmp_path / "c.png")
    assert panel.data == "Set5" and panel.curves["a"].psnr_y == [32.0, 33.0]
    (panel,) = compare_runs([a, b], tmp_path / "c.png", "Set14")
    assert panel.data == "Set14" and panel.curves["b"].psnr_y == [31.0, 32.0]
    assert read_curve(a).psnr_y == [31.0, 32.0]
    with pytest.raises(UserError, match="b was not validated on own, but on Set14, Set5; leave it out"):
        compare_runs([a, b], tmp_path / "c.png", "own")


@pytest.mark.parametrize(("width", "tables"), [(80, 2), (160, 1)])
def test_what_the_runs_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int, tables: int
) -> None:
    options = "blocks = 1\nchannels = 4"
    runs = [
        make_run(tmp_path / "vanilla", [valid(1, 30.0, 0), valid(125_000, 30.5, 900)], config=of(2, "vanilla")),
        make_run(tmp_path / "eco", [valid(1, 30.6, 0)], config=of(2, options=options)),
        make_run(tmp_path / "worse", [valid(1, 30.1, 0)], config=of(2, network="of-another-version")),
    ]
    console = plain_console()
    console.width = width
    monkeypatch.setattr(command, "plain_console", lambda: console)
    compare_runs(runs, tmp_path / "c.png")
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines()[:-1])) <= width and printed.count("┏") == tables
    found: dict[str, list[str]] = {}
    for name, *cells in rows(printed):
        found[name] = [*found.get(name, []), *cells]
    small = sum(value.numel() for value in build("edsr-tiny", 2, blocks=1, channels=4).parameters())
    assert found["vanilla"][4:5] + found["vanilla"][6:] == ["125,000", "edsr-tiny", found["vanilla"][7], "vanilla", "-"]
    assert found["eco"][4:5] + found["eco"][6:] == ["1", "edsr-tiny", f"{small:,}", "eco", "big"]
    assert found["worse"][4:5] + found["worse"][6:] == ["-", "of-another-version", "-", "eco", "big"]


def test_an_untrained_network_does_not_press_the_curves(tmp_path: Path) -> None:
    records = [valid(step, psnr, step, set="Set5", bicubic=33.0) for step, psnr in ((0, 6.0), (10, 33.5), (20, 35.0))]
    (panel,) = compare_runs([make_run(tmp_path / "a", records)], tmp_path / "c.png")
    assert panel.curves["a"].steps == [0, 10, 20]
    low, high = command._limits(panel)
    assert 32.8 < low < 33.0 and 35.0 < high < 35.2  # beyond bicubic and the last figure
    low, _ = command._limits(panel._replace(curves={"a": panel.curves["a"]._replace(psnr_y=[6.0, 31.0, 35.0])}))
    assert 30.5 < low < 31.0  # what was trained is shown
    _, high = command._limits(panel._replace(curves={"a": panel.curves["a"]._replace(psnr_y=[35.5, 33.5, 35.0])}))
    assert 35.5 < high < 35.7  # so is where a run with given weights began
    low, high = command._limits(panel._replace(curves={"a": Curve([0], [0.0], [6.0], 0, 0.0, 33.0)}))
    assert low < 6.0 and high > 33.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"run is no run: cannot read .*metrics\.jsonl \(No such file"),
        (b"", "run has no validation, as without --valid; leave it out"),
        (json.dumps(train(1, 0)).encode() + b"\n", "run has no validation"),
        (json.dumps(valid(1, 30, 0, bicubic="high")).encode() + b"\n", r"metrics\.jsonl is damaged in line 1"),
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
