"""The commands from end to end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from eco_fast import __version__
from eco_fast.cli import main
from eco_fast.config import load_config
from eco_fast.models.weights import load_network, read_weights, weights_file


def _run(*arguments: object) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 0


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    _run("--version")
    assert capsys.readouterr().out == f"eco-fast {__version__}\n"
    _run("--help")
    printed = capsys.readouterr().out
    assert all(command in printed for command in ("train", "eval", "demo"))


def test_the_module_is_the_command() -> None:
    result = subprocess.run([sys.executable, "-m", "eco_fast", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("eco-fast ")


@pytest.mark.parametrize("mode", ["kd", "eco-centroid", "eco", "alpha-sample"])
def test_train_then_eval(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str) -> None:
    common = ["--train", photos, "--valid", photos, "--set", "student.options={blocks=1, channels=4}"]
    common += ["--set", "data.patch=12", "--set", "data.batch=2", "--steps", 6]
    common += ["--set", "run.valid_every=6"]
    _run("train", "edsr-tiny", "--mode", "vanilla", "--out", tmp_path / "teacher", *common)
    _run("train", "edsr-tiny", "--mode", mode, "--teacher", tmp_path / "teacher", "--out", tmp_path / "run", *common)
    assert "is not better than bicubic" in capsys.readouterr().out
    assert load_config(tmp_path / "run" / "config.toml").mode == mode
    headers = [read_weights(weights_file(tmp_path / name))[1] for name in ("teacher", "run")]
    assert [(h["mode"], h.get("teacher"), h["eco-fast"]) for h in headers] == [
        ("vanilla", None, __version__),
        (mode, "teacher", __version__),  # its name, without the folders that it lies in
    ]
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["kind"] for record in records] == ["valid", "train", "valid"]
    _run("eval", tmp_path / "run", "--data", photos, "--json", tmp_path / "s.json", "--pictures", tmp_path / "pictures")
    assert "BT.601" in capsys.readouterr().out
    (scores,) = json.loads((tmp_path / "s.json").read_text())["networks"]
    assert (scores["name"], scores["network"], scores["scale"]) == ("run", "edsr-tiny", 2)
    figures = scores["data"]["photos"]
    assert figures["images"] == 4
    assert figures["psnr_y"] > 0 and 0 < figures["bicubic"]["ssim_y"] <= 1
    assert figures["psnr_y"] == pytest.approx(records[-1]["psnr_y"])  # validation is the same code
    assert len(list((tmp_path / "pictures").rglob("*.png"))) == 4


def test_a_student_starts_from_given_weights(photos: Path, tmp_path: Path) -> None:
    arguments = ["--train", photos, "--mode", "vanilla", "--set", "student.options={blocks=1, channels=4}"]
    arguments += ["--set", "data.patch=12", "--set", "data.batch=2", "--set", "optim.lr=1e-12"]
    _run("train", "edsr-tiny", *arguments, "--steps", 1, "--out", tmp_path / "first")
    init = f"student.init={tmp_path / 'first'}"
    _run(
        "train", "edsr-tiny", *arguments, "--steps", 2, "--set", init, "--set", "run.seed=9", "--out", tmp_path / "next"
    )
    first, after = (load_network(tmp_path / name).state_dict() for name in ("first", "next"))
    assert all(torch.allclose(first[key], after[key], atol=1e-6) for key in first)


def test_resuming_a_finished_run_changes_nothing(photos: Path, tmp_path: Path) -> None:
    arguments = ["--train", photos, "--mode", "vanilla", "--set", "student.options={blocks=1, channels=4}"]
    arguments += ["--set", "data.patch=12", "--set", "data.batch=2", "--steps", 3, "--out", tmp_path / "run"]
    _run("train", "edsr-tiny", *arguments)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    _run("train", tmp_path / "run" / "config.toml", "--resume")
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


@pytest.mark.slow
def test_published_weights_reach_their_figures(testdata: Path, tmp_path: Path) -> None:
    weights = testdata / "weights" / "RLFN" / "rlfn_s_x2.pth"
    _run("eval", weights, "--network", "rlfn-s", "--data", testdata / "Set5", "--json", tmp_path / "scores.json")
    (network,) = json.loads((tmp_path / "scores.json").read_text())["networks"]
    figures = network["data"]["Set5"]
    assert figures["psnr_y"] == pytest.approx(38.05, abs=0.01)
    assert figures["ssim_y"] == pytest.approx(0.9607, abs=0.0005)
    assert 33.66 <= figures["bicubic"]["psnr_y"] <= 33.68


def test_prepare_verify_and_data(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    store, sheet = tmp_path / "store", tmp_path / "sheet.png"
    _run("prepare", photos, "--scale", "2,3", "--out", store)
    _run("prepare", "--verify", store)
    _run("data", store, "--sheet", sheet)
    printed = capsys.readouterr().out
    assert "lr_x2" in printed and "lr_x3" in printed and "every file is right" in printed
    assert Image.open(sheet).width > 300
    with pytest.raises(SystemExit) as end:
        main(["data", str(store), "--sheet", str(photos)])
    assert end.value.code == 2
    assert f"cannot write {photos}: Is a directory; name another file with --sheet" in capsys.readouterr().err


def test_training_on_a_store_gives_what_training_on_its_folder_gives(photos: Path, tmp_path: Path) -> None:
    _run("prepare", photos, "--scale", "2", "--out", tmp_path / "store")
    common = ["--mode", "vanilla", "--steps", "3", "--set", "data.patch=12", "--set", "data.batch=4"]
    common += ["--set", "student.options={blocks=1, channels=8}", "--set", "run.threads=1"]
    for name, train in (("a", photos), ("b", tmp_path / "store")):
        _run("train", "edsr-tiny", "--train", train, "--out", tmp_path / name, *common)
    first, second = (load_file(next((tmp_path / name).rglob("weights.safetensors"))) for name in "ab")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
