"""`train --dry-run`, and the recipes of the package."""

from pathlib import Path

import pytest

from eco_fast.cli import main
from eco_fast.config import load_config
from eco_fast.data.make_store import prepare

PAPER = {"eco-edsr": 3.2e-3, "eco-edsr-baseline": 8e-4, "eco-rcan": 1.6e-3}  # recipe -> learning rate


def test_it_says_much_and_writes_nothing(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(tmp_path.rglob("*"))
    command = ["train", "edsr-tiny", "--mode", "vanilla", "--train", str(photos), "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as end:
        main([*command, "--dry-run", "--set", "student.options={blocks=1, channels=4}", "--set", "data.patch=8"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert 'precision = "' in said and "4 training images" in said and "trained parameters" in said
    assert "4,000 steps: about" in said
    assert set(tmp_path.rglob("*")) == before


def test_a_store_is_looked_at(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare([photos], [2], tmp_path / "store")
    command = ["train", "edsr-tiny", "--mode", "vanilla", "--train", str(tmp_path / "store"), "--dry-run"]
    with pytest.raises(SystemExit) as end:
        main([*command, "--set", "student.options={blocks=1, channels=4}", "--set", "data.patch=8"])
    assert end.value.code == 0
    assert "4 training images" in capsys.readouterr().out


def test_a_missing_teacher_is_found(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["train", "edsr-tiny", "--mode", "eco", "--train", str(photos), "--dry-run"])
    assert end.value.code == 2 and "needs a teacher" in capsys.readouterr().err


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", PAPER)
def test_recipes_of_the_paper(name: str, scale: int) -> None:
    """The values of Lee & Heo 2024, in the units of a loss on 0-255."""
    config = load_config(name, flags={"scale": scale})
    optim = config.optim
    assert (f"eco-{config.student.name}", config.scale, config.mode) == (name, scale, "eco")
    assert (config.data.patch, config.data.batch, config.run.steps) == (48, 128, 125_000)
    assert (optim.name, optim.betas, optim.eps, optim.weight_decay) == ("lamb", (0.9, 0.99), 1e-6, 0)
    assert (optim.clip_value, optim.clip_norm, optim.warmup) == (0.1, 0, 0)
    assert (config.guard.skip_factor, config.guard.first_loss) == (5, 100)
    assert (config.loss.kind, config.loss.scale, config.alpha.schedule) == ("l1", 255, "official")
    assert optim.lr == PAPER[name]
    if name == "eco-edsr-baseline":
        assert (optim.schedule, optim.milestones, optim.gamma) == ("multistep", [25_000, 50_000, 75_000, 100_000], 0.5)
    else:
        assert optim.schedule == "cosine"
