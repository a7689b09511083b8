"""`eco-fast demo`: a teacher and two students on photographs that ship with scikit-image.

Nothing here is a shortcut: the runs are `train`, the figures are `evaluate`, on PNG files in folders.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eco_fast.commands.scores_table import Row, print_rows, save_comparison, save_curves
from eco_fast.config import load_config
from eco_fast.data.notes import Notes
from eco_fast.display import Display
from eco_fast.errors import UserError
from eco_fast.evaluate.benchmark import Pair, load_benchmark
from eco_fast.evaluate.bicubic import bicubic_upsample
from eco_fast.evaluate.inference import super_resolve
from eco_fast.evaluate.run import Scores, evaluate
from eco_fast.extras import install
from eco_fast.models.weights import load_network
from eco_fast.train.start import train

_RUNS: dict[str, dict[str, Any]] = {  # label -> settings over the recipe cpu-demo
    "teacher": {"mode": "vanilla", "run.seed": 1},
    "vanilla": {"mode": "vanilla"},
    "eco": {"mode": "eco"},
}


def run_demo(out: Path, *, steps: int | None = None, force: bool = False) -> None:
    """Train, evaluate on held-out photographs, print one table, write curves and side-by-side crops.

    Raises:
        UserError: scikit-image is not installed, `out` holds an earlier demo and `force` is not set.
    """
    display = Display()
    train_dir, held_out = write_photographs(out / "photographs")
    rates: dict[str, float] = {}
    for label, settings in _RUNS.items():
        display.line(f"\n== {label} ==")
        flags: dict[str, Any] = {
            **settings,
            "data.train": [str(train_dir)],
            "data.valid": str(held_out),
            "data.store": str(out / "store"),
            "run.out": str(out / label),
            "run.steps": steps,
        }
        if label == "eco":
            flags["teacher.file"] = str(out / "teacher")
        config = load_config("cpu-demo", flags=flags)
        rates[label] = train(config, force=force, display=display).steps_per_second
    pairs = load_benchmark(held_out, config.scale, None, Notes())
    rows, networks = [Row("bicubic", evaluate(None, pairs, config.scale))], {}
    for label in _RUNS:
        networks[label] = load_network(out / label)
        scores: Scores = evaluate(networks[label], pairs, config.scale)
        rows.append(Row(label, scores, steps_per_second=rates[label]))
    print_rows(rows, title=f"held-out photographs, x{config.scale}", console=display.console)
    curves = {label: _curve(out / label / "metrics.jsonl") for label in _RUNS}
    save_curves(out / "curves.png", curves, baseline=("bicubic", rows[0].scores.psnr_y))
    _save_pictures(out, pairs, networks, config.scale)
    display.line(f"curves: {out / 'curves.png'}; pictures: {', '.join(str(out / f'{p.name}.png') for p in pairs)}")


def write_photographs(folder: Path) -> tuple[Path, Path]:
    """Write scikit-image's photographs as PNG into `train/` and `held-out/`, and return the two folders."""
    try:
        from skimage import data
    except ImportError:
        raise UserError(f"the demo's photographs come with scikit-image; {install('demo')}") from None
    sets = {
        "train": {
            "astronaut": data.astronaut(),
            "motorcycle": data.stereo_motorcycle()[0],
            "rocket": data.rocket(),
        },
        "held-out": {"chelsea": data.chelsea(), "coffee": data.coffee()},
    }
    for name, images in sets.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for title, image in images.items():
            Image.fromarray(np.asarray(image)).save(folder / name / f"{title}.png")
    return folder / "train", folder / "held-out"


def _curve(metrics: Path) -> tuple[list[int], list[float]]:
    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    valid = [record for record in records if record["kind"] == "valid"]
    return [record["step"] for record in valid], [record["psnr_y"] for record in valid]


def _save_pictures(out: Path, pairs: list[Pair], networks: dict[str, Any], scale: int) -> None:
    for pair in pairs:
        panels = [("bicubic", bicubic_upsample(pair.lr, scale))]
        panels += [(label, super_resolve(network, pair.lr)) for label, network in networks.items()]
        save_comparison(out / f"{pair.name}.png", [*panels, ("HR", pair.hr)], border=scale)
