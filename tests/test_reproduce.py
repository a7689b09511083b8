"""The reproduced figures: their runs, their probes, and that the rows in the repository are those of the code."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks.reproduce import figure_2, figure_3, figure_4, figure_5, table
from benchmarks.reproduce.figures import RESULTS, TEACHERS
from benchmarks.reproduce.lab import SEEDS, VALIDATIONS, Lab, Trial
from eco_fast.errors import UserError
from eco_fast.train.batches import Batch

CURVES = {
    "figure_3": [t for teacher in TEACHERS for mode in figure_3.MODES for t in figure_3.trials(mode, teacher)],
    "figure_4": [t for mode in figure_4.MODES for batch in figure_4.BATCHES for t in figure_4.trials(mode, batch)],
    "figure_5": [t for label in figure_5.VARIANTS for t in figure_5.trials(label)],
}


def rows(name: str) -> list[dict[str, str]]:
    with (RESULTS / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", CURVES)
def test_every_run_of_a_figure_has_its_rows(name: str) -> None:
    found = [tuple(row[key] for key in ("mode", "teacher", "alpha", "batch", "steps", "seed")) for row in rows(name)]
    for trial in CURVES[name]:
        assert found.count(tuple(map(str, trial.columns().values()))) == VALIDATIONS, trial
    assert (RESULTS / f"{name}.png").is_file()


def test_every_probe_and_every_line_of_the_table_has_its_rows() -> None:
    probes = rows("figure_2")
    steps = figure_2.STEPS // figure_2.EVERY
    assert len(probes) == len(figure_2.TRIALS) * len(figure_2.DIRECTIONS) * steps
    assert all(float(row["lowest_loss"]) <= float(row["loss"]) <= float(row["highest_loss"]) for row in probes)
    lines = [row["line"] for row in rows("table")]
    for line, trials in table.trials().items():
        assert len(trials) == len(SEEDS) >= 3
        assert lines.count(line) == len(trials) * len(table.SETS)


def test_names_of_runs_differ() -> None:
    trials = {trial for group in CURVES.values() for trial in group}
    assert len({trial.name for trial in trials}) == len(trials)


def test_a_probe_measures_along_the_step_and_leaves_the_weights_after_it() -> None:
    torch.manual_seed(0)
    student = nn.Conv2d(3, 3, 1)
    x, hr = torch.rand(2, 3, 4, 4), torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    before = figure_2._weights(student)
    after = before + 0.01 * torch.randn_like(before)
    batch = Batch(x, hr, None, torch.tensor(1.0))
    along_update, along_gradient = figure_2._look(student, batch, before, after)
    assert torch.equal(figure_2._weights(student), after)
    assert along_update["update_norm"] == pytest.approx((after - before).norm().item())
    losses = []
    for length in (0.0, *figure_2.LENGTHS):
        figure_2._set_weights(student, before + length * (after - before))
        losses.append(255 * (student(x) - hr / 255).abs().mean().item())
    assert along_update["lowest_loss"] == pytest.approx(min(losses), rel=1e-5)
    assert along_update["highest_loss"] == pytest.approx(max(losses), rel=1e-5)
    assert along_gradient["gradient_norm"] == along_update["gradient_norm"]


@pytest.fixture
def lab(tmp_path: Path, rng: np.random.Generator) -> Lab:
    for folder, side in (("train/some", 96), ("Kodak24/HR", 300)):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for i in range(2):
            coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
            coarse.resize((side, side)).save(tmp_path / "data" / folder / f"{i}.png")
    return Lab(tmp_path / "data", tmp_path / "work", jobs=2)


@pytest.mark.slow
def test_runs_are_made_once(lab: Lab) -> None:
    trials = [Trial("vanilla", seed, steps=20) for seed in (0, 1)]
    curves = lab.curves(trials)
    assert all(curves[trial].steps == list(range(1, 21)) for trial in trials)
    assert curves[trials[0]].psnr_y != curves[trials[1]].psnr_y
    written = {trial: (lab.folder(trial) / "metrics.jsonl").stat().st_mtime_ns for trial in trials}
    assert lab.curves(trials) == curves
    assert {trial: (lab.folder(trial) / "metrics.jsonl").stat().st_mtime_ns for trial in trials} == written


def test_a_run_that_fails_is_named_with_its_log(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.reproduce.lab.sys.executable", shutil.which("false"))
    with pytest.raises(UserError, match=r"seed0 failed with exit code 1: .*all of it: .*\.log"):
        lab.curves([Trial("vanilla", 0, steps=20)])
