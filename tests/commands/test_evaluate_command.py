"""What `eco-fast eval` prints and writes besides the usual table."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eco_fast.commands import evaluate as command
from eco_fast.commands.tables import labels
from eco_fast.errors import UserError
from eco_fast.evaluate.published import SETS, published
from eco_fast.models import build
from eco_fast.models.weights import identity, save_weights
from eco_fast.train import machine
from tests.conftest import exit_code

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
    return exit_code("eval", *arguments)


def test_every_image_in_csv(run_folder: Path, sets: list[Path], tmp_path: Path) -> None:
    data = [word for folder in sets for word in ("--data", folder)]
    assert run(run_folder, *data, "--csv", tmp_path / "a.csv", "--json", tmp_path / "a.json") == 0
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [(row["data"], row["image"]) for row in rows] == [(d, str(i)) for d in ("Set5", "other") for i in range(3)]
    (network,) = json.loads((tmp_path / "a.json").read_text())["networks"]
    figures = network["data"]["Set5"]
    assert np.mean([float(row["psnr_y"]) for row in rows[:3]]) == pytest.approx(figures["psnr_y"])
    assert np.mean([float(row["bicubic_ssim_y"]) for row in rows[:3]]) == pytest.approx(figures["bicubic"]["ssim_y"])


def test_published_figures(run_folder: Path, sets: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(run_folder, "--data", sets[0], "--data", sets[1], "--reference", "edsr-x2-eco") == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "edsr-x2-eco, published" in line)
    assert "38.29  0.9615" in row and row.split("│")[3].isspace()  # nothing is published on the other set
    assert run(run_folder, "--data", sets[0], "--reference", "edsr-x4-eco") == 2
    assert "--reference edsr-x4-eco is not x2, as the network is; name a row" in capsys.readouterr().err
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
        (network,) = json.loads((tmp_path / "a.json").read_text())["networks"]
        scores.append(network["data"]["Set5"]["psnr_y"])
    assert len(set(scores)) == 3


def make_weights(file: Path, scale: int, seed: int = 0, **header: str) -> Path:
    """A weights file as runs have them."""
    torch.manual_seed(seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_weights(
        file, build("edsr-tiny", scale, **OPTIONS).state_dict(), {**identity("edsr-tiny", OPTIONS, scale), **header}
    )
    return file


def make_run(folder: Path, *, best: int, valid: str) -> Path:
    """A run with checkpoints of steps 10 and 2000."""
    for step in (10, 2000):
        make_weights(folder / "checkpoints" / f"step-{step:08d}" / "ema.safetensors", 2, seed=step, step=str(step))
    (folder / "checkpoints" / "best").symlink_to(f"step-{best:08d}")
    (folder / "config.toml").write_text(f"[data]\nvalid = {valid}\n")
    return folder


def test_several_networks_share_a_table(
    run_folder: Path, sets: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """Images are read once, each network has its row, and all of them are in the files."""
    read = []
    load = command.load_benchmark
    monkeypatch.setattr(
        command, "load_benchmark", lambda path, *rest, **options: (read.append(path), load(path, *rest))[1]
    )
    other = make_weights(tmp_path / "other.safetensors", 2, seed=3)
    outputs = ["--csv", tmp_path / "a.csv", "--json", tmp_path / "a.json", "--pictures", tmp_path / "pictures"]
    assert run(run_folder, other, "--data", sets[0], *outputs) == 0
    assert read == [sets[0]]
    said = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:3]] for line in said.splitlines() if line.startswith("│")]
    assert [name for name, _ in rows] == ["bicubic", "run", "other"]
    networks = json.loads((tmp_path / "a.json").read_text())["networks"]
    assert [network["name"] for network in networks] == ["run", "other"]
    assert [network["weights"] for network in networks] == ["average", None]
    for (_, shown), network in zip(rows[1:], networks, strict=True):
        assert float(shown.split()[0].rstrip("*")) == pytest.approx(network["data"]["Set5"]["psnr_y"], abs=6e-4)
    lines = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [(line["name"], line["image"]) for line in lines] == [(name, i) for name in ("run", "other") for i in "012"]
    one, two = (Image.open(tmp_path / "pictures" / "Set5" / f"{i}.png") for i in "01")
    assert run(other, "--data", sets[0], "--pictures", tmp_path / "one") == 0
    assert one.width == two.width > Image.open(tmp_path / "one" / "Set5" / "0.png").width


def test_each_scale_has_a_table(sets: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its own bicubic too; what belongs to one scale is refused."""
    files = [make_weights(tmp_path / f"x{scale}.safetensors", scale) for scale in (2, 3)]
    outputs = ["--json", tmp_path / "a.json", "--pictures", tmp_path / "pictures"]
    assert run(*files, "--data", sets[0], "--reference", "edsr-x3-eco", *outputs) == 0
    said = capsys.readouterr().out
    first, second = said.split("x3, fp32")
    assert "x2, fp32" in first and "published" not in first
    assert "34.80" in second
    bicubic = [
        n["data"]["Set5"]["bicubic"]["psnr_y"] for n in json.loads((tmp_path / "a.json").read_text())["networks"]
    ]
    assert bicubic[0] > bicubic[1] + 1
    assert {path.parent.parent.name for path in (tmp_path / "pictures").rglob("*.png")} == {"x2", "x3"}
    assert run(*files, "--data", sets[0], "--lr", sets[1]) == 2
    assert "--lr belongs to one data set and one scale" in capsys.readouterr().err


def test_names_in_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "eco", best=10, valid="[]")
    checkpoint = run / "checkpoints" / "step-00002000"
    paths = [run, run / "checkpoints" / "best", checkpoint, checkpoint / "ema.safetensors"]
    assert list(labels(paths)) == ["eco", "eco/best", "eco/step-00002000", "eco/step-00002000/ema"]
    files = [make_weights(tmp_path / folder / "net_x4.v2.safetensors", 2) for folder in "ab"]
    assert list(labels([files[0], run])) == ["net_x4.v2", "eco"]
    assert list(labels(files)) == [str(file) for file in files]
    monkeypatch.chdir(run)
    assert list(labels([Path()])) == ["eco"]
    with pytest.raises(UserError, match=r"net_x4\.v2\.safetensors is named twice; name each once"):
        labels([files[0], files[0]])


def test_what_was_taken_is_said(run_folder: Path, tmp_path: Path, sets: list[Path], capsys: Any) -> None:
    made = make_run(tmp_path / "eco", best=10, valid="[]")
    for weights, options, expected in (
        (made, (), f"eco: {made}/checkpoints/step-00002000/ema.safetensors (edsr-tiny x2, {{}}, step 2,000, average)"),
        (made / "checkpoints" / "best", (), "/checkpoints/best/ema.safetensors (edsr-tiny x2, {}, step 10, average)"),
        (run_folder, ("--raw",), "/step-00000001/weights.safetensors (edsr-tiny x2, {}, raw weights)"),
    ):
        assert run(weights, "--data", sets[0], *options) == 0
        parameters = sum(value.numel() for value in build("edsr-tiny", 2, **OPTIONS).parameters())
        assert expected.format(f"{parameters:,} parameters") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("checkpoint", "valid", "noted"),
    [
        (".", '"{0}"', False),  # the newest, which nothing was chosen for
        ("checkpoints/best", '"{0}"', True),
        ("checkpoints/best", '["{0}", "{1}"]', True),
        ("checkpoints/best", '["{1}", "{0}"]', False),  # another set has chosen
        ("checkpoints/best", '"{0}/HR"', True),  # the same images
        ("checkpoints/best", '"/of/another/machine/Set5"', True),
        ("checkpoints/best", '"{2}"', False),  # other images in a folder of this name
        ("checkpoints/best", "[]", False),
        ("checkpoints/step-00000010/ema.safetensors", '"{0}"', True),  # the best by another name
        ("checkpoints/step-00002000", '"{0}"', False),
    ],
)
def test_figures_of_a_chosen_checkpoint_are_noted(
    tmp_path: Path, sets: list[Path], capsys: Any, checkpoint: str, valid: str, noted: bool
) -> None:
    namesake = tmp_path / "elsewhere" / "Set5"
    namesake.mkdir(parents=True)
    if "HR" in valid:
        (sets[0] / "HR").mkdir()
        for file in sets[0].glob("*.png"):
            file.rename(sets[0] / "HR" / file.name)
    made = make_run(tmp_path / "eco", best=10, valid=valid.format(*sets, namesake))
    assert run(made / checkpoint, "--data", sets[0], "--data", sets[1]) == 0
    assert capsys.readouterr().out.count("was chosen as the best of its run on Set5: its figures flatter it") == noted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "gpu"), "--device gpu is no device; take auto, cpu, cuda, or cuda:1 for the second GPU"),
        (("--device", "cuda:"), "--device cuda: is no device"),
        (("--device", "cuda"), "--device cuda: PyTorch sees no GPU; take cpu"),
        (("--device", "cuda:1"), "--device cuda:1: PyTorch sees no GPU; take cpu"),
        (("--threads", "0"), "--threads 0 is too few; give 1 or more"),
        (("--tile", "0"), "--tile 0 is no size; give LR pixels"),
        (("--precision", "int8"), "unknown precision 'int8'; take one of fp32, bf16, fp16"),
    ],
)
def test_wrong_choices_are_one_line(
    run_folder: Path, sets: list[Path], capsys: Any, monkeypatch: Any, options: tuple[str, str], message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(run_folder, "--data", sets[0], *options) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(machine, "refuse_unusable_kernels", lambda device: None)
    assert [machine.usable_device(name) for name in ("auto", "cpu", "cuda:1")] == ["cuda", "cpu", "cuda:1"]
    with pytest.raises(UserError, match="--device cuda:2: PyTorch sees 2 GPUs; take cuda:1"):
        machine.usable_device("cuda:2")


def test_device_threads_and_tiles_are_used(run_folder: Path, sets: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    evaluate = command.evaluate
    monkeypatch.setattr(torch, "set_num_threads", lambda count: asked.append(count))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # cpu is taken all the same

    def noting(network: Any, *arguments: Any, **options: Any) -> Any:
        if network is not None:
            asked.append((str(next(network.parameters()).device), options["tile"]))
        return evaluate(network, *arguments, **options)

    monkeypatch.setattr(command, "evaluate", noting)
    assert run(run_folder, "--data", sets[0], "--device", "cpu", "--threads", 3, "--tile", 20) == 0
    assert (asked[0], asked[-1]) == (3, ("cpu", 20))


@pytest.mark.slow
def test_two_processes_share_the_images(run_folder: Path, sets: list[Path], tmp_path: Path) -> None:
    assert run(run_folder, "--data", sets[0], "--csv", tmp_path / "one.csv") == 0
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "kernels")])}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "eco_fast", "eval", str(run_folder), "--data", str(sets[0]), "--csv", str(tmp_path / "two.csv")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("SSIM-Y") == done.stdout.count("(edsr-tiny x2") == 1
    one, two = (list(csv.reader((tmp_path / f"{name}.csv").open())) for name in ("one", "two"))
    assert [row[:5] for row in one] == [row[:5] for row in two]
    np.testing.assert_allclose(
        *(np.array([row[5:] for row in rows[1:]], dtype=float) for rows in (one, two)), rtol=1e-4
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
