"""A training from nothing to a PSNR: the student of docs/reproduction.md, vanilla and eco, beside the mean of three of
each on a CPU (`results/learns_cpu.csv`).

The best evidence that a GPU computes what it should: 12,000 steps through all parts of the trainer end where the CPU's
do. Training images are T91 and a quarter of DIV2K's validation images, of the folder that ECO_FAST_TESTDATA names.
"""

import csv
import os
import statistics
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from eco_fast.config import load_config
from eco_fast.data.notes import Notes
from eco_fast.display import Display
from eco_fast.evaluate.benchmark import load_benchmark
from eco_fast.evaluate.run import evaluate
from eco_fast.models.weights import load_network
from eco_fast.proof.outcome import Evidence, NotRun
from eco_fast.proof.stage import Stage
from eco_fast.train.start import train

HERE = Path(__file__).parent
RECIPE = HERE / "reproduce" / "student.toml"
REFERENCE = HERE / "results" / "learns_cpu.csv"
TRAIN, VALID, TEACHER = ("train/DIV2K_0901-1000_quarter", "train/T91"), "Set5", "weights/RLFN/rlfn_s_x2.pth"
STEPS = 12_000
REHEARSAL = {"run.steps": 30, "run.precision": "auto"}  # and on the images that the score is of, which are few
SEEDS = (0, 1, 2)  # of the CPU's runs; a GPU has time for the first
CLOSE = 0.08  # dB from the CPU's mean; its seeds lie up to 0.05 dB apart


def learns(stage: Stage) -> Evidence:
    """Train both modes and compare; on a CPU a few steps, which end nowhere."""
    if stage.small:
        for mode in ("eco", "vanilla"):
            _train(stage, mode, None, {**REHEARSAL, "data.train": [str(_data() / VALID / "HR")]})
        return Evidence(2, detail=f"{REHEARSAL['run.steps']} steps of each mode: they run, and no more is shown")
    expected = _reference()
    found = {mode: _train(stage, mode, expected[mode], {}) for mode in ("eco", "vanilla")}
    faults = [
        f"{mode} ends at {psnr:.3f} dB, on a CPU at {expected[mode]:.3f}"
        for mode, psnr in found.items()
        if abs(psnr - expected[mode]) > CLOSE
    ]
    gain = found["eco"] - found["vanilla"]
    faults += [f"eco is {-gain:.3f} dB below vanilla"] if gain <= 0 else []
    return Evidence(2, tuple(faults), f"{gain:+.3f} dB of eco over vanilla after {STEPS} steps")


def _train(stage: Stage, mode: str, expected: float | None, settings: dict[str, Any]) -> float:
    """PSNR-Y of one run with these settings besides its own; figures are reported next to those that are expected."""
    data = _data()
    flags: dict[str, Any] = {
        "mode": mode,
        "data.train": [str(data / folder) for folder in TRAIN],
        "data.store": str(stage.scratch / "store"),
        "run.steps": STEPS,
        "run.seed": 0,
        "run.device": stage.device,
        "run.threads": 0 if stage.device == "cuda" else 1,
        "run.graph": stage.device == "cuda",
        "run.out": str(stage.scratch / mode),
        **settings,
    }
    flags |= dict.fromkeys(("run.valid_every", "run.checkpoint_every"), flags["run.steps"])
    if mode == "eco":
        flags |= {"teacher.file": str(data / TEACHER), "teacher.name": "rlfn-s"}
    started = time.monotonic()
    result = train(load_config(RECIPE, flags=flags), force=True, display=Display(Console(quiet=True)))
    seconds = time.monotonic() - started
    pairs = load_benchmark(data / VALID, 2, None, Notes())
    scores = evaluate(load_network(stage.scratch / mode), pairs, 2, device="cpu")
    stage.say(
        mode,
        benchmark="learns",
        steps=flags["run.steps"],
        seed=flags["run.seed"],
        set5_psnr_y=round(scores.psnr_y, 3),
        set5_ssim_y=round(scores.ssim_y, 4),
        cpu_psnr_y=None if expected is None else round(expected, 3),
        steps_per_second=round(result.steps_per_second, 1),
        whole_s=round(seconds, 1),
    )
    return scores.psnr_y


def _data() -> Path:
    folder = os.environ.get("ECO_FAST_TESTDATA")
    if not folder:
        raise NotRun(f"let ECO_FAST_TESTDATA name a folder with {', '.join((*TRAIN, VALID, TEACHER))}")
    missing = [name for name in (*TRAIN, VALID, TEACHER) if not Path(folder, name).exists()]
    if missing:
        raise NotRun(f"{folder} has no {', '.join(missing)}")
    return Path(folder)


def _reference() -> dict[str, float]:
    """PSNR-Y of the same runs on one CPU core, by mode: the mean over the seeds."""
    with REFERENCE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        mode: statistics.mean(float(row["set5_psnr_y"]) for row in rows if row["case"] == mode)
        for mode in ("eco", "vanilla")
    }


if __name__ == "__main__":
    import itertools
    import tempfile

    from rows import environment, write_figures

    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as scratch:
        stage = Stage("cpu", Path(scratch), Path(scratch), 1e9, rows.append)
        for mode, seed in itertools.product(("eco", "vanilla"), SEEDS):
            _train(stage, mode, None, {"run.seed": seed})
    write_figures(REFERENCE, [{**row, **environment()} for row in rows])
