"""The table of the paper, small: `vanilla` and `eco` at equal budget on Set5 and on held-out images."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.reproduce.figures import TEACHERS, Row, command, write
from benchmarks.reproduce.lab import OWN_TEACHER, SEEDS, Lab, Trial
from eco_fast.data.notes import Notes
from eco_fast.evaluate.benchmark import load_benchmark
from eco_fast.evaluate.run import evaluate
from eco_fast.models.weights import load_network
from eco_fast.train.teacher import load_teacher

STEPS = 12_000
SETS = {"Set5": Path("Set5"), "Kodak24": Path("Kodak24/HR")}
Scores = dict[str, tuple[float, float]]  # set -> dB, SSIM


def trials() -> dict[str, list[Trial]]:
    """The runs of each line, a seed each."""
    lines = {"vanilla": [Trial("vanilla", seed, steps=STEPS) for seed in SEEDS]}
    for teacher in TEACHERS:
        lines[f"eco, {teacher}"] = [Trial("eco", seed, teacher, steps=STEPS) for seed in SEEDS]
    return lines


def make(lab: Lab, out: Path) -> None:
    """Make the table: vanilla and eco at equal budget on Set5 and Kodak24."""
    lines = trials()
    curves = lab.curves(trial for line in lines.values() for trial in line)
    sets = {name: load_benchmark(lab.data / path, 2, None, Notes()) for name, path in SETS.items()}

    def scores(network: nn.Module | None) -> Scores:
        found = {name: evaluate(network, pairs, 2) for name, pairs in sets.items()}
        return {name: (each.psnr_y, each.ssim_y or 0.0) for name, each in found.items()}

    results: dict[str, list[Scores]] = {"bicubic": [scores(None)]}
    rows = _rows("bicubic", {}, results["bicubic"][0])
    for name in TEACHERS:
        results[f"teacher {name}"] = [scores(load_teacher(lab.teacher(name), 2))]
        columns = OWN_TEACHER.columns() if name == "own" else {}
        rows += _rows(f"teacher {name}", columns, results[f"teacher {name}"][0])
    for line, runs in lines.items():
        results[line] = [scores(load_network(lab.folder(trial))) for trial in runs]
        for trial, each in zip(runs, results[line], strict=True):
            rows += _rows(line, {**trial.columns(), "minutes": round(curves[trial].duration, 1)}, each)
    write(out / "table.csv", rows)
    _print(results)


def _rows(line: str, columns: Row, scores: Scores) -> list[Row]:
    return [
        {"line": line, **columns, "set": name, "psnr_y": round(psnr, 4), "ssim_y": round(ssim, 5)}
        for name, (psnr, ssim) in scores.items()
    ]


def _print(results: dict[str, list[Scores]]) -> None:
    table = Table(title=f"x2, {STEPS:,} steps, mean over {len(SEEDS)} seeds (lowest to highest)")
    table.add_column("")
    for name in SETS:
        table.add_column(f"{name} PSNR-Y dB", justify="right")
        table.add_column("SSIM-Y", justify="right")
    for line, runs in results.items():
        table.add_row(line, *(text for name in SETS for text in _cells([run[name] for run in runs])))
    Console(width=120).print(table)


def _cells(runs: Sequence[tuple[float, float]]) -> tuple[str, str]:
    psnr, ssim = zip(*runs, strict=True)
    spread = f" ({min(psnr):.3f} to {max(psnr):.3f})" if len(runs) > 1 else ""
    return f"{statistics.fmean(psnr):.3f}{spread}", f"{statistics.fmean(ssim):.4f}"


if __name__ == "__main__":
    command(make)
