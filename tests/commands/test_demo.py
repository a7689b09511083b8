"""`eco-fast demo`: runs, table, curves and pictures."""

from pathlib import Path

import pytest
from PIL import Image

from eco_fast.commands.demo import verdict
from eco_fast.config import load_config
from tests.conftest import exit_code


def run(*arguments: object) -> int:
    return exit_code("demo", *arguments)


@pytest.mark.slow
def test_table_curves_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("skimage")
    out = tmp_path / "demo"
    assert run("--out", out, "--steps", 4) == 0
    printed = capsys.readouterr().out.partition("held-out photographs (chelsea, coffee), x2")[2]
    rows = {
        name: next(line for line in printed.splitlines() if f" {name} " in line)
        for name in ("bicubic", "teacher", "vanilla", "eco")
    }
    assert "195,971" in rows["teacher"] and " 5 " in rows["teacher"], "larger, and trained for longer"
    for student in ("vanilla", "eco"):
        assert "69,027" in rows[student] and " to " in rows[student] and " 4 " in rows[student]
    assert "32.922" in rows["bicubic"]
    assert "eco over vanilla, seed by seed" in printed
    for name in ("curves", "chelsea", "coffee"):
        assert Image.open(out / f"{name}.png").width > 400
    configs = {name: load_config(out / name / "config.toml") for name in ("vanilla-0", "eco-0", "vanilla-1", "eco-1")}
    for seed in (0, 1):  # the same first weights and patches
        assert configs[f"vanilla-{seed}"].run.seed == configs[f"eco-{seed}"].run.seed == seed
        assert configs[f"vanilla-{seed}"].optim == configs[f"eco-{seed}"].optim
        assert configs[f"vanilla-{seed}"].student == configs[f"eco-{seed}"].student
    before = (out / "curves.png").read_bytes()
    assert run("--out", out, "--steps", 4) == 2
    assert "replace an earlier demo with --force" in capsys.readouterr().err
    assert (out / "curves.png").read_bytes() == before


def test_a_gain_within_the_spread_is_said_to_be() -> None:
    assert verdict([34.40, 34.42], [34.50, 34.46]) == [
        "eco over vanilla, seed by seed: +0.100, +0.040 dB; in the mean +0.070 dB",
        "every seed of eco ends above every seed of vanilla",
    ]
    assert "WITHIN what seeds differ by" in verdict([34.40, 34.47], [34.50, 34.46])[1]
