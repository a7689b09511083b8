"""`eco-fast eval`: one network on several data sets, beside bicubic."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from eco_fast.data.notes import Notes
from eco_fast.errors import UserError
from eco_fast.evaluate.benchmark import Pair, benchmark_name, load_benchmark
from eco_fast.evaluate.bicubic import bicubic_upsample
from eco_fast.evaluate.inference import PRECISIONS
from eco_fast.evaluate.report import SetScores, document, print_scores, save_comparison, write_document
from eco_fast.evaluate.run import OnImage, evaluate
from eco_fast.models.weights import load_network, read_weights, weights_file


def evaluate_checkpoint(
    checkpoint: Path,
    data: Sequence[Path],
    *,
    lr_dir: Path | None = None,
    model: str | None = None,
    scale: int | None = None,
    precision: str = "fp32",
    json_file: Path | None = None,
    pictures: Path | None = None,
    strict: bool = False,
) -> dict[str, SetScores]:
    """Evaluate a checkpoint, print one table, and write JSON and pictures where asked.

    Args:
        checkpoint: Run, checkpoint folder or weights file.
        data: Sets, as in `load_benchmark`.
        lr_dir: LR images of the one set in `data`.
        model: Network of a bare weights file.
        scale: Scale of a bare weights file.
        precision: "fp32", "bf16" or "fp16".
        json_file: Takes the figures (see `document`).
        pictures: Folder that takes `SET/IMAGE.png`.
        strict: Refuse images that would be converted.

    Raises:
        UserError: Bad input, or output that cannot be written.
    """
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}; take one of {', '.join(PRECISIONS)}")
    if lr_dir is not None and len(data) > 1:
        raise UserError("--lr belongs to one data set, but several are named; evaluate them one by one")
    console = Console(highlight=False)
    network = load_network(checkpoint, name=model, scale=scale)
    scale = int(network.scale)  # type: ignore[arg-type]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    label = model or _name_in(checkpoint) or type(network).__name__.lower()
    results: dict[str, SetScores] = {}
    for name, pairs in _load(data, scale, lr_dir, strict, console).items():
        draw = None if pictures is None else _drawing(pictures / name, label, scale)
        bicubic = evaluate(None, pairs, scale)
        with console.status(f"{name}: {len(pairs)} images"):
            results[name] = SetScores(evaluate(network, pairs, scale, precision=precision, on_image=draw), bicubic)
    print_scores(results, model=label, scale=scale, precision=precision, console=console)
    if json_file is not None:
        write_document(json_file, document(results, model=label, scale=scale, precision=precision))
    return results


def _name_in(checkpoint: Path) -> str | None:
    """The network's name in the header of a file written here."""
    return read_weights(weights_file(checkpoint))[1].get("model")


def _load(
    data: Sequence[Path], scale: int, lr_dir: Path | None, strict: bool, console: Console
) -> dict[str, list[Pair]]:
    """All sets by name, read before the first is evaluated: bad input is found at once."""
    notes, sets = Notes(), dict[str, list[Pair]]()
    for path in data:
        name = benchmark_name(path)
        if name in sets:
            raise UserError(f"two data sets are named {name}; evaluate them one by one")
        sets[name] = load_benchmark(path, scale, lr_dir, notes)
    if strict:
        notes.raise_if_any()
    for line in notes.lines():
        console.print(line, markup=False, soft_wrap=True)
    return sets


def _drawing(folder: Path, label: str, scale: int) -> OnImage:
    def draw(pair: Pair, sr: NDArray[np.uint8], psnr: float, ssim: float | None) -> None:
        panels = [("bicubic", bicubic_upsample(pair.lr, scale)), (label, sr), ("HR", pair.hr)]
        save_comparison(folder / f"{pair.name}.png", panels, border=scale)

    return draw
