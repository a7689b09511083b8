"""Validation: several sets, what is recorded and said of them, and that it changes nothing of the training."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from eco_fast.cli import main
from eco_fast.config import load_config
from eco_fast.data.notes import Notes
from eco_fast.errors import UserError
from eco_fast.evaluate.benchmark import load_benchmark
from eco_fast.evaluate.run import evaluate
from eco_fast.train.loop import Result
from eco_fast.train.start import train
from tests.conftest import make_image

TINY = {"student.options": {"blocks": 1, "channels": 4}, "data.patch": 8, "data.batch": 2, "run.device": "cpu"}


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """A second set."""
    folder = tmp_path / "others"
    folder.mkdir()
    for i in range(2):
        Image.fromarray(make_image(48, 64, 10 + i)).save(folder / f"{i}.png")
    return folder


def run(photos: Path, out: Path, **settings: object) -> Result:
    flags: dict[str, Any] = {**TINY, "mode": "vanilla", "data.train": [str(photos)], "data.store": out.parent / "store"}
    flags |= {"run.out": out, "run.steps": 6, "run.valid_every": 2, "run.log_every": 2}
    return train(load_config("edsr-tiny", flags={**flags, **{k.replace("__", "."): v for k, v in settings.items()}}))


def curves(out: Path) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for record in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()):
        if record["kind"] == "valid":
            found.setdefault(record["set"], {})[record["step"]] = record["psnr_y"]
    return found


def test_every_set_has_a_curve_and_the_first_one_chooses(
    photos: Path, others: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(photos, tmp_path / "run", data__valid=[others, photos])
    found = curves(tmp_path / "run")
    assert list(found) == ["others", "photos"] and all(list(curve) == [0, 2, 4, 6] for curve in found.values())
    assert result.psnr_y == found["others"][6]
    best = max((step for step in found["others"] if step), key=lambda step: found["others"][step])
    assert (tmp_path / "run" / "checkpoints" / "best").readlink() == Path(f"step-{best:08d}")
    said = capsys.readouterr().out
    figures = [f"{found[name][6]:.3f} dB" for name in ("others", "photos")]
    of_best = "the best so far" if best == 6 else rf"best [\d.]+ at {best}"
    assert re.search(rf"step 6: others {figures[0]} \(bicubic [\d.]+, {of_best}\), [\d.]+ ms\n", said)
    assert re.search(rf"step 6: photos {figures[1]} \(bicubic [\d.]+\), [\d.]+ ms\n", said)


def test_bicubic_is_that_of_the_tables(photos: Path, others: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "run", data__valid=[others, photos])
    for record in map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()):
        if record["kind"] == "valid":
            pairs = load_benchmark(tmp_path / record["set"], 2, None, Notes())
            assert record["bicubic"] == pytest.approx(evaluate(None, pairs, 2).psnr_y, abs=1e-9)


def test_validation_changes_nothing_of_the_training(photos: Path, others: Path, tmp_path: Path) -> None:
    """Before the first step either: the same bits as without."""
    plain = load_file(run(photos, tmp_path / "plain").checkpoint / "weights.safetensors")
    other = load_file(run(photos, tmp_path / "other", data__valid=others).checkpoint / "weights.safetensors")
    assert all(torch.equal(other[name], plain[name]) for name in plain)


def test_a_resumed_run_knows_its_best(
    photos: Path, others: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is not validated again where it goes on, and ends as one that was not stopped."""
    settings = {"data__valid": others, "run__checkpoint_every": 2, "optim__lr": 1e-2}
    run(photos, tmp_path / "straight", **settings)
    run(photos, tmp_path / "run", **settings)
    capsys.readouterr()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000006")
    (tmp_path / "run" / "checkpoints" / "best").unlink()
    (tmp_path / "run" / "checkpoints" / "best").symlink_to("step-00000004")
    train(load_config(tmp_path / "run" / "config.toml"), resume=True)
    said = capsys.readouterr().out
    assert "step 0:" not in said and re.search(r"step 6: others .* (best [\d.]+ at 4|the best so far)\)", said)
    assert curves(tmp_path / "run") == curves(tmp_path / "straight")


def test_the_start_is_never_the_best_and_that_is_said(
    photos: Path, others: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights that training makes worse: the link still names a checkpoint that is there."""
    first = run(photos, tmp_path / "first", run__steps=60, run__valid_every=60, data__valid=others)
    settings = {"student__init": first.checkpoint, "optim__lr": 0.5, "optim__ema": 0.0, "run__precision": "fp32"}
    run(photos, tmp_path / "run", data__valid=others, **settings)
    assert (tmp_path / "run" / "checkpoints" / "best").resolve(strict=True).name != "step-00000000"
    start = curves(tmp_path / "run")["others"][0]
    assert f"WARNING: no validation reached the {start:.3f} dB of step 0; lower optim.lr" in capsys.readouterr().out


def test_one_set_needs_no_list() -> None:
    for value in ("data.valid=a", "data.valid=['a']"):
        assert load_config("edsr-tiny", [value, "data.valid_lr=b"]).data.valid == [Path("a")]
    assert load_config("edsr-tiny", ["data.valid=['a', 'b']"]).data.valid == [Path("a"), Path("b")]


def test_the_option_is_repeatable(photos: Path, others: Path, tmp_path: Path) -> None:
    arguments = ["train", "edsr-tiny", "--mode", "vanilla", "--train", photos, "--valid", others, "--valid", photos]
    arguments += ["--steps", 1, "--out", tmp_path / "run", "--set", "student.options={blocks=1, channels=4}"]
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in (*arguments, "--set", "data.patch=8")])
    assert end.value.code == 0 and list(curves(tmp_path / "run")) == ["others", "photos"]


def test_two_sets_of_one_name(photos: Path, tmp_path: Path) -> None:
    twin = tmp_path / "more" / "photos"
    shutil.copytree(photos, twin)
    with pytest.raises(UserError, match=f"two validation sets are called photos: {photos} and {twin}; rename a folder"):
        run(photos, tmp_path / "run", data__valid=[photos, twin])


def test_lr_images_for_one_of_two_sets(photos: Path, others: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.valid_lr names 1 folders of LR images for 2 validation sets; name one"):
        run(photos, tmp_path / "run", data__valid=[photos, others], data__valid_lr=others)
