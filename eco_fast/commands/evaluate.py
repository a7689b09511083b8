"""`eco-fast eval`: one network on several data sets, with bicubic for comparison."""

import atexit
import gc
import os
import tomllib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from eco_fast.commands.scores_table import (
    SetScores,
    document,
    print_scores,
    save_comparison,
    write_document,
    write_images,
)
from eco_fast.console import plain_console
from eco_fast.data.notes import Notes
from eco_fast.errors import UserError
from eco_fast.evaluate.benchmark import Pair, benchmark_name, load_benchmark
from eco_fast.evaluate.bicubic import bicubic_upsample
from eco_fast.evaluate.inference import PRECISIONS
from eco_fast.evaluate.metrics import GREY_PROTOCOL, PROTOCOL
from eco_fast.evaluate.published import published
from eco_fast.evaluate.run import OnImage, Scores, evaluate
from eco_fast.models import placed
from eco_fast.models.weights import load_network, read_weights, weights_file
from eco_fast.train.machine import refuse_unusable_kernels


def evaluate_checkpoint(
    checkpoint: Path,
    data: Sequence[Path],
    *,
    lr_dir: Path | None = None,
    network_name: str | None = None,
    scale: int | None = None,
    precision: str = "fp32",
    raw: bool = False,
    ensemble: bool = False,
    reference: str | None = None,
    json_file: Path | None = None,
    csv_file: Path | None = None,
    pictures: Path | None = None,
    strict: bool = False,
    grey_values: bool = False,
) -> dict[str, SetScores]:
    """Evaluate a checkpoint, print one table, and write JSON and pictures where asked.

    Args:
        checkpoint: Run, checkpoint folder or weights file.
        data: Sets, as in `load_benchmark`.
        lr_dir: LR images of the one set in `data`.
        network_name: Network of a bare weights file.
        scale: Scale of a bare weights file.
        precision: "fp32", "bf16" or "fp16".
        raw: Take a run's weights themselves instead of their average.
        ensemble: The mean over eight orientations.
        reference: Print published figures too, such as `edsr-x4-eco` (see `published`).
        json_file: Takes the figures (see `document`).
        csv_file: Takes those of every image.
        pictures: Folder that takes `SET/IMAGE.png`.
        strict: Refuse images that would be converted.
        grey_values: Compare grey files by their values, as tables of bicubic, SRCNN and VDSR do.

    Raises:
        UserError: Bad input, or output that cannot be written.
    """
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}; take one of {', '.join(PRECISIONS)}")
    if lr_dir is not None and len(data) > 1:
        raise UserError("--lr belongs to one data set, but several are named; evaluate them one by one")
    published_figures = None if reference is None else published(reference)
    rank, size = _processes()
    console = plain_console(quiet=rank > 0)
    network = load_network(checkpoint, name=network_name, scale=scale, raw=raw)
    scale = int(network.scale)  # type: ignore[arg-type]
    device = f"cuda:{rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    refuse_unusable_kernels(device)
    network = placed(network, device)
    label = (
        network_name or _name_in(checkpoint) or str(getattr(network, "architecture", type(network).__name__)).lower()
    )
    label += " x8" if ensemble else ""
    validated = _validated_on(checkpoint)
    results: dict[str, SetScores] = {}
    for name, pairs in _load(data, scale, lr_dir, strict, grey_values, console).items():
        draw = None if pictures is None else _drawing(pictures / name, label, scale)
        if name in validated:
            note = f"note: the run was validated on {name}, so its best checkpoint was chosen on these images"
            console.print(note, soft_wrap=True)
        mine = pairs[rank::size]
        bicubic = evaluate(None, mine, scale)
        with console.status(Text(f"{name}: {len(pairs)} images")):
            ours = evaluate(network, mine, scale, precision=precision, ensemble=ensemble, on_image=draw)
        results[name] = SetScores(_gathered(ours, size), _gathered(bicubic, size))
    protocol = GREY_PROTOCOL if grey_values else PROTOCOL
    print_scores(
        results,
        model=label,
        scale=scale,
        precision=precision,
        published=published_figures,
        protocol=protocol,
        console=console,
    )
    if json_file is not None and rank == 0:
        content = document(results, model=label, scale=scale, precision=precision, protocol=protocol)
        write_document(json_file, content)
    if csv_file is not None and rank == 0:
        write_images(csv_file, results)
    return results


def _validated_on(checkpoint: Path) -> set[str]:
    """The name of the set on which a run was validated, if it is a run and was."""
    file = checkpoint / "config.toml"
    if not file.is_file():
        return set()
    try:
        valid = tomllib.loads(file.read_text(encoding="utf-8")).get("data", {}).get("valid")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {file}: {error}; evaluate one of its checkpoints instead") from error
    return set() if valid is None else {benchmark_name(Path(valid))}


def _processes() -> tuple[int, int]:
    """Rank and number of the processes that torchrun started; joins them until this one exits."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return 0, 1
    if not dist.is_initialized():
        dist.init_process_group("gloo")
        atexit.register(_leave)
    return dist.get_rank(), size


def _leave() -> None:
    """End the process group and its threads, which must not outlive the interpreter: see `leave_world`."""
    if dist.is_initialized():
        dist.destroy_process_group()
        gc.collect()


def _gathered(scores: Scores, size: int) -> Scores:
    """The figures of all images, in their order, of processes that took every `size`-th one."""
    if size == 1:
        return scores
    parts: list[Scores] = [scores] * size
    dist.all_gather_object(parts, scores)
    number = sum(len(part.names) for part in parts)
    order = [(i % size, i // size) for i in range(number)]
    return Scores(
        [parts[p].names[i] for p, i in order],
        [parts[p].psnr[i] for p, i in order],
        [(parts[p].ssim or [])[i] for p, i in order],
    )


def _name_in(checkpoint: Path) -> str | None:
    """The name of the network in the header of a file that this package wrote; None without a header."""
    return read_weights(weights_file(checkpoint))[1].get("model")


def _load(
    data: Sequence[Path], scale: int, lr_dir: Path | None, strict: bool, grey_values: bool, console: Console
) -> dict[str, list[Pair]]:
    """All sets by name, read before the first is evaluated: bad input is found at once."""
    notes, sets = Notes(), dict[str, list[Pair]]()
    for path in data:
        name = benchmark_name(path)
        if name in sets:
            raise UserError(f"two data sets are named {name}; evaluate them one by one")
        sets[name] = load_benchmark(path, scale, lr_dir, notes, grey_values=grey_values)
    if strict:
        notes.raise_if_any()
    for line in notes.lines():
        console.print(line, soft_wrap=True)
    return sets


def _drawing(folder: Path, label: str, scale: int) -> OnImage:
    def draw(pair: Pair, sr: NDArray[np.uint8], psnr: float, ssim: float | None) -> None:
        panels = [("bicubic", bicubic_upsample(pair.lr, scale)), (label, sr), ("HR", pair.hr)]
        save_comparison(folder / f"{pair.name}.png", panels, border=scale, grey=pair.grey)

    return draw
