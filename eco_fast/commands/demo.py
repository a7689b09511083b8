"""`eco-fast demo`: what ECO changes, on photographs that ship with scikit-image.

A teacher is trained, larger and longer than the students. Then every seed trains two students from the same first
weights on the same patches, `vanilla` and `eco`. Nothing here is a shortcut: the runs are `train`, the figures are
`evaluate`, on PNG files in folders.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import nn

from eco_fast.commands.compare import Curve, read_curve
from eco_fast.commands.tables import print_in_blocks
from eco_fast.config import load_config
from eco_fast.data.notes import Notes
from eco_fast.display import Display
from eco_fast.errors import UserError
from eco_fast.evaluate.benchmark import Pair, load_benchmark
from eco_fast.evaluate.bicubic import bicubic_upsample
from eco_fast.evaluate.inference import super_resolve
from eco_fast.evaluate.metrics import PROTOCOL
from eco_fast.evaluate.pictures import save_comparison, save_curves
from eco_fast.evaluate.run import Scores, evaluate
from eco_fast.extras import install
from eco_fast.models import parameters_of
from eco_fast.models.weights import load_network
from eco_fast.train.start import train
from eco_fast.units import clock

_SEEDS = (0, 1)
_STUDENTS = ("vanilla", "eco")
_TEACHER: dict[str, Any] = {  # over the recipe cpu-demo
    "run.seed": 100,
    "student.options": {"blocks": 8, "channels": 32},
    "data.batch": 8,
}
_TEACHER_STEPS = 1.25  # times those of a student


class Method(NamedTuple):
    """What one line of the table and one line of the plot tell of."""

    networks: Sequence[nn.Module]  # one for each seed, as of the others
    scores: Sequence[Scores]
    curves: Sequence[Curve]


def run_demo(out: Path, *, steps: int | None = None, force: bool = False) -> None:
    """Train, evaluate on held-out photographs, print one table, write curves and side-by-side crops.

    Args:
        out: Folder of the runs and pictures.
        steps: Updates of a student; by default the recipe's.
        force: Replace an earlier demo.

    Raises:
        UserError: scikit-image is not installed, or `out` holds something and `force` is not set.
    """
    if not force and out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; replace an earlier demo with --force, or name another folder with --out")
    display, started = Display(), time.monotonic()
    photographs = write_photographs(out / "photographs")
    runs = _train_all(out, photographs, steps, force, display)
    scale = load_config("cpu-demo").scale
    pairs = load_benchmark(photographs[1], scale, None, Notes())
    bicubic = evaluate(None, pairs, scale)
    methods = {label: _method(folders, pairs, scale) for label, folders in runs.items()}
    display.line(f"\nheld-out photographs ({', '.join(pair.name for pair in pairs)}), x{scale}\n{PROTOCOL}")
    print_in_blocks(display.console, "method", ["bicubic", *methods], _columns(bicubic, methods))
    for line in verdict(*(method_psnr(methods[label]) for label in _STUDENTS)):
        display.line(line)
    curves = {label: (m.curves[0].steps, [curve.psnr_y for curve in m.curves]) for label, m in methods.items()}
    save_curves(out / "curves.png", curves, ("bicubic", bicubic.psnr_y))
    pictures = [_save_picture(out, pair, methods, scale) for pair in pairs]
    display.line(f"curves: {out / 'curves.png'}; pictures: {', '.join(map(str, pictures))}")
    display.line(f"all of it took {clock(time.monotonic() - started)}")


def write_photographs(folder: Path) -> tuple[Path, Path]:
    """Write scikit-image's photographs as PNG into `train/` and `held-out/`, and return the two folders."""
    try:
        from skimage import data
    except ImportError:
        raise UserError(f"the demo's photographs come with scikit-image; {install('demo')}") from None
    sets: dict[str, dict[str, Any]] = {"train": {}, "held-out": {}}
    for title in ("astronaut", "brick", "camera", "coins", "grass", "gravel", "rocket"):
        sets["train"][title] = getattr(data, title)()
    sets["train"]["motorcycle"] = data.stereo_motorcycle()[0]
    for title in ("chelsea", "coffee"):
        sets["held-out"][title] = getattr(data, title)()
    for name, images in sets.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for title, image in images.items():
            Image.fromarray(np.asarray(image)).convert("RGB").save(folder / name / f"{title}.png")
    return folder / "train", folder / "held-out"


def verdict(vanilla: Sequence[float], eco: Sequence[float]) -> list[str]:
    """What the figures say, in words: PSNR-Y in dB of each seed, in the same order."""
    gains = [ours - theirs for ours, theirs in zip(eco, vanilla, strict=True)]
    each = ", ".join(f"{gain:+.3f}" for gain in gains)
    line = f"eco over vanilla, seed by seed: {each} dB; in the mean {statistics.fmean(gains):+.3f} dB"
    if min(eco) > max(vanilla):
        return [line, "every seed of eco ends above every seed of vanilla"]
    return [line, "this is WITHIN what seeds differ by: more steps or more seeds would have to show a gain"]


def method_psnr(method: Method) -> list[float]:
    """PSNR-Y in dB of each seed."""
    return [scores.psnr_y for scores in method.scores]


def _train_all(
    out: Path, photographs: tuple[Path, Path], steps: int | None, force: bool, display: Display
) -> dict[str, list[Path]]:
    """The folders of all runs, one for each seed, by what the table calls them."""
    steps = steps or load_config("cpu-demo").run.steps
    plans: list[tuple[str, Path, dict[str, Any]]] = [
        ("teacher", out / "teacher", {**_TEACHER, "mode": "vanilla", "run.steps": round(_TEACHER_STEPS * steps)})
    ]
    for seed in _SEEDS:
        for mode in _STUDENTS:
            teacher = None if mode == "vanilla" else out / "teacher"
            own = {"mode": mode, "run.seed": seed, "run.steps": steps, "teacher.file": teacher}
            plans.append((mode, out / f"{mode}-{seed}", own))
    folders: dict[str, list[Path]] = {}
    for number, (label, folder, settings) in enumerate(plans, start=1):
        display.line(f"\n== {number} of {len(plans)}: {folder.name} ==")
        flags = {
            **settings,
            "data.train": [str(photographs[0])],
            "data.valid": str(photographs[1]),
            "data.store": str(out / "store"),
            "run.out": str(folder),
            "run.valid_every": max(1, settings["run.steps"] // 10),
        }
        train(load_config("cpu-demo", flags=flags), force=force, display=display)
        folders.setdefault(label, []).append(folder)
    return folders


def _method(folders: Sequence[Path], pairs: Sequence[Pair], scale: int) -> Method:
    networks = [load_network(folder) for folder in folders]
    scores = [evaluate(network, pairs, scale) for network in networks]
    return Method(networks, scores, [read_curve(folder) for folder in folders])


def _columns(bicubic: Scores, methods: Mapping[str, Method]) -> dict[str, list[str]]:
    """The table's columns: a cell for bicubic, then one for each method."""
    goal = _mean_curve(methods["vanilla"]).psnr_y[-1]
    reached = [_mean_curve(method).reaches(goal) for method in methods.values()]
    return {
        "parameters": ["", *(f"{parameters_of(method.networks[0]):,}" for method in methods.values())],
        "steps": ["", *(f"{method.curves[0].last_step:,}" for method in methods.values())],
        "PSNR-Y dB\n(lowest to highest)": [f"{bicubic.psnr_y:.3f}", *map(_figures, methods.values())],
        "SSIM-Y": [f"{bicubic.ssim_y:.4f}", *(f"{_mean_ssim(method):.4f}" for method in methods.values())],
        f"{goal:.3f} dB\nat step": ["", *("never" if step is None else f"{step:,}" for step in reached)],
    }


def _figures(method: Method) -> str:
    psnr = method_psnr(method)
    spread = f" ({min(psnr):.2f} to {max(psnr):.2f})" if len(psnr) > 1 else ""
    return f"{statistics.fmean(psnr):.3f}{spread}"


def _mean_ssim(method: Method) -> float:
    return statistics.fmean(scores.ssim_y or 0.0 for scores in method.scores)


def _mean_curve(method: Method) -> Curve:
    """The first seed's curve with the mean of all seeds' PSNR-Y."""
    seeds = zip(*(curve.psnr_y for curve in method.curves), strict=True)
    return method.curves[0]._replace(psnr_y=[statistics.fmean(values) for values in seeds])


def _save_picture(out: Path, pair: Pair, methods: Mapping[str, Method], scale: int) -> Path:
    """Bicubic, the networks of the first seed and the original, side by side."""
    panels = [("bicubic", bicubic_upsample(pair.lr, scale))]
    panels += [(label, super_resolve(method.networks[0], pair.lr)) for label, method in methods.items()]
    file = out / f"{pair.name}.png"
    save_comparison(file, [*panels, ("HR", pair.hr)], border=scale)
    return file
