"""What `eco-fast eval` prints and writes besides the usual table."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eco_fast.cli import main
from eco_fast.evaluate.published import SETS, published
from eco_fast.models import build
from eco_fast.models.weights import identity, save_weights

OPTIONS = {"blocks": 1, "channels": 4}


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run with weights and another average."""
    folder = tmp_path / "run" / "checkpoints" / "step-00000001"
    folder.mkdir(parents=True)
    for seed, name in enumerate(("weights", "ema")):
        torch.manual_seed(seed)
        network = build("edsr-tiny", 2, **OPTIONS)
        save_weights(folder / f"{name}.safetensors", network.state_dict(), identity("edsr-tiny", OPTIONS, 2))
    return tmp_path / "run"


@pytest.fixture
def sets(tmp_path: Path, rng: np.random.Generator) -> list[Path]:
    folders = [tmp_path / "Set5", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
        for i in range(3):
            coarse = Image.fromarray(rng.integers(0, 256, (9, 11, 3), dtype=np.uint8))
            coarse.resize((44, 36)).save(folder / f"{i}.png")
    return folders


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main(["eval", *map(str, arguments)])
    return int(end.value.code or 0)


def test_every_image_in_csv(run_folder: Path, sets: list[Path], tmp_path: Path) -> None:
    data = [word for folder in sets for word in ("--data", folder)]
    assert run(run_folder, *data, "--csv", tmp_path / "a.csv", "--json", tmp_path / "a.json") == 0
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [(row["data"], row["image"]) for row in rows] == [(d, str(i)) for d in ("Set5", "other") for i in range(3)]
    figures = json.loads((tmp_path / "a.json").read_text())["data"]["Set5"]
    assert np.mean([float(row["psnr_y"]) for row in rows[:3]]) == pytest.approx(figures["psnr_y"])
    assert np.mean([float(row["bicubic_ssim_y"]) for row in rows[:3]]) == pytest.approx(figures["bicubic"]["ssim_y"])


def test_published_figures(run_folder: Path, sets: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(run_folder, "--data", sets[0], "--reference", "edsr-x4-eco") == 0
    said = capsys.readouterr().out
    assert "published" in said and "32.59" in said and "0.8998" in said
    assert run(run_folder, "--data", sets[0], "--reference", "edsr-x5") == 2
    assert "no published figures for edsr-x5" in capsys.readouterr().err


def test_the_table_is_whole() -> None:
    for network in ("edsr", "rcan"):
        for scale in (2, 3, 4):
            for mode in ("vanilla", "eco"):
                row = published(f"{network}-x{scale}-{mode}")
                assert tuple(row) == SETS
                assert all(26 < psnr < 40 and 0.7 < ssim < 1 for psnr, ssim in row.values())


def test_raw_weights_and_ensemble(run_folder: Path, sets: list[Path], tmp_path: Path) -> None:
    scores = []
    for options in ((), ("--raw",), ("--ensemble",)):
        assert run(run_folder, "--data", sets[0], *options, "--json", tmp_path / "a.json") == 0
        scores.append(json.loads((tmp_path / "a.json").read_text())["data"]["Set5"]["psnr_y"])
    assert len(set(scores)) == 3


def test_the_validation_set_is_no_test_set(
    run_folder: Path, sets: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (run_folder / "config.toml").write_text(f'[data]\nvalid = "{sets[0]}"\n')
    assert run(run_folder, "--data", sets[0], "--data", sets[1]) == 0
    assert capsys.readouterr().out.count("the run was validated on Set5") == 1


@pytest.mark.slow
def test_two_processes_share_the_images(run_folder: Path, sets: list[Path], tmp_path: Path) -> None:
    assert run(run_folder, "--data", sets[0], "--csv", tmp_path / "one.csv") == 0
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "kernels")])}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "eco_fast", "eval", str(run_folder), "--data", str(sets[0]), "--csv", str(tmp_path / "two.csv")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("bicubic PSNR-Y") == 1
    one, two = (list(csv.reader((tmp_path / f"{name}.csv").open())) for name in ("one", "two"))
    assert [row[:2] for row in one] == [row[:2] for row in two]
    np.testing.assert_allclose(
        *(np.array([row[2:] for row in rows[1:]], dtype=float) for rows in (one, two)), rtol=1e-4
    )


def test_grey_files_by_their_values(run_folder: Path, sets: list[Path], tmp_path: Path) -> None:
    """What is grey in its file; an RGB file with equal channels stays RGB, as MATLAB has it."""
    for name in ("0", "1"):
        grey = Image.open(sets[0] / f"{name}.png").convert("L")
        (grey if name == "0" else grey.convert("RGB")).save(sets[0] / f"{name}.png")
    rows = {}
    for option in ([], ["--grey-values"]):
        assert (
            run(run_folder, "--data", sets[0], "--csv", tmp_path / "a.csv", "--json", tmp_path / "a.json", *option) == 0
        )
        protocol = json.loads((tmp_path / "a.json").read_text())["protocol"]
        assert ("grey files: grey values" in protocol) == bool(option)
        rows[bool(option)] = list(csv.DictReader((tmp_path / "a.csv").open()))
    for as_rgb, by_value in zip(rows[False], rows[True], strict=True):
        for column in ("psnr_y", "bicubic_psnr_y"):
            less = float(as_rgb[column]) - float(by_value[column])
            assert less == pytest.approx(20 * np.log10(255 / 219) if as_rgb["image"] == "0" else 0)
