"""Small runs of RCAN, of a student and of a teacher of spandrel: train, go on, export, evaluate."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from eco_fast.cli import main
from eco_fast.commands.export import export
from eco_fast.config import load_config
from eco_fast.models import build
from eco_fast.models.weights import identity, load_network, save_weights
from eco_fast.train.start import train

RCAN = {"groups": 1, "blocks": 1, "channels": 8}
SWINIR = {"img_size": 12, "embed_dim": 12, "depths": [2], "num_heads": [2], "window_size": 4}
EDSR = {"blocks": 1, "channels": 8}
CASES: dict[str, dict[str, Any]] = {
    "rcan": {"student.name": "rcan", "student.options": RCAN},
    "swinir student": {"student.name": "swinir-light", "student.options": SWINIR},
    "spandrel teacher": {"student.name": "edsr-tiny", "student.options": EDSR, "mode": "eco"},
}
STEPS = 8


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_short_run(case: str, photos: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if case != "rcan":
        request.getfixturevalue("spandrel")
    settings = {
        "mode": "vanilla",
        "data.train": [str(photos)],
        "data.store": str(tmp_path / "store"),
        "data.patch": 12,
        "data.batch": 2,
        "run.steps": STEPS,
        "run.checkpoint_every": 4,
        "run.precision": "fp32",
        "run.threads": 1,
        **CASES[case],
    }
    if case == "spandrel teacher":
        torch.manual_seed(3)
        settings["teacher.file"] = str(tmp_path / "teacher.safetensors")
        teacher = build("swinir-light", 2, **SWINIR)
        save_weights(settings["teacher.file"], teacher.state_dict(), identity("swinir-light", SWINIR, 2))

    straight = train(load_config("edsr-tiny", flags={**settings, "run.out": tmp_path / "a"})).checkpoint
    train(load_config("edsr-tiny", flags={**settings, "run.out": tmp_path / "b"}))
    (tmp_path / "b" / "checkpoints" / f"step-{STEPS:08d}").rename(tmp_path / "aside")
    resumed = train(load_config(tmp_path / "b" / "config.toml"), resume=True).checkpoint
    for name in ("weights.safetensors", "ema.safetensors"):
        ours, theirs = load_file(resumed / name), load_file(straight / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)

    file = export(tmp_path / "a", "safetensors", tmp_path / "net.safetensors")
    x = torch.rand(1, 3, 17, 22)
    with torch.no_grad():
        torch.testing.assert_close(load_network(file)(x), load_network(tmp_path / "a")(x))
    with pytest.raises(SystemExit) as end:
        main(["eval", str(file), "--data", str(photos), "--json", str(tmp_path / "scores.json")])
    assert end.value.code == 0
    (network,) = json.loads((tmp_path / "scores.json").read_text())["networks"]
    assert network["data"]["photos"]["images"] == 4
