"""`eco-fast eval`: networks on data sets, with bicubic for comparison."""

import atexit
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from eco_fast.commands.runs import RunSettings
from eco_fast.commands.scores_table import (
    Evaluated,
    SetScores,
    document,
    print_scores,
    write_document,
    write_images,
)
from eco_fast.commands.tables import labels
from eco_fast.console import plain_console
from eco_fast.data.notes import Notes
from eco_fast.display import Count, Display
from eco_fast.errors import UserError
from eco_fast.evaluate.benchmark import Pair, benchmark_name, load_benchmark
from eco_fast.evaluate.inference import refuse_wrong_choices
from eco_fast.evaluate.metrics import GREY_PROTOCOL, PROTOCOL
from eco_fast.evaluate.pictures import save_comparison
from eco_fast.evaluate.published import published, scale_of
from eco_fast.evaluate.run import Scores, evaluate
from eco_fast.models import architecture_of, parameters_of, placed
from eco_fast.models.recognise import recognise, shapes_of
from eco_fast.models.weights import load_network, read_header, weights_file
from eco_fast.train.machine import usable_device, use_threads
from eco_fast.train.run_folder import Checkpoints
from eco_fast.train.world import World, join_world, leave_world

_TOGETHER = 16  # images that go through all networks before the next ones: a picture needs what all made of it

Sets = dict[str, list[Pair]]  # by name
Images = dict[str, list[tuple[str, NDArray[np.uint8]]]]  # by name of the original: what was made of it, and by whom


def evaluate_networks(
    weights: Sequence[Path],
    data: Sequence[Path],
    *,
    lr_dir: Path | None = None,
    network_name: str | None = None,
    scale: int | None = None,
    device: str = "auto",
    threads: int | None = None,
    precision: str = "fp32",
    tile: int | None = None,
    raw: bool = False,
    ensemble: bool = False,
    reference: str | None = None,
    json_file: Path | None = None,
    csv_file: Path | None = None,
    pictures: Path | None = None,
    strict: bool = False,
    grey_values: bool = False,
) -> list[Evaluated]:
    """Evaluate networks, print a table for each of their scales, and write JSON, CSV and pictures where asked.

    Args:
        weights: Runs, of which the newest checkpoint is taken, checkpoint folders or weights files.
        data: Sets, as in `load_benchmark`; read once for all networks of a scale.
        lr_dir: LR images of the one set in `data`.
        network_name: Network of bare weights files.
        scale: Scale of bare weights files.
        device: As `usable_device` takes it. Of several processes each takes a GPU, if none is named.
        threads: Of the CPU; None leaves them to PyTorch.
        precision: "fp32", "bf16" or "fp16".
        tile: Side of the tiles in LR pixels; by default an image goes through whole where memory allows it.
        raw: Take a run's weights themselves instead of their average.
        ensemble: The mean over eight orientations.
        reference: Print published figures too, such as `edsr-x4-eco` (see `published`).
        json_file: Takes the figures (see `document`).
        csv_file: Takes those of every image.
        pictures: Folder that takes `SET/IMAGE.png`, for networks of several scales `x2/SET/IMAGE.png` and so on.
        strict: Refuse images that would be converted.
        grey_values: Compare grey files by their values, as tables of bicubic, SRCNN and VDSR do.

    Raises:
        UserError: Bad input, or output that cannot be written.
    """
    refuse_wrong_choices(precision, tile)
    row = None if reference is None else (reference, published(reference))
    files = labels(weights)
    use_threads(threads)
    world = join_world()
    atexit.register(leave_world)
    display = Display(plain_console(quiet=not world.leads))
    place = usable_device(device)
    if place == "cuda":
        place = f"cuda:{world.rank % torch.cuda.device_count()}"
    loaded = [_load(name, path, network_name, scale, raw=raw) for name, path in files.items()]
    scales = list(dict.fromkeys(found.scale for found, _ in loaded))
    _refuse_other_scales(scales, data, lr_dir, reference)
    sets = _load_sets(data, scales, lr_dir, strict, grey_values, display)
    for found, _ in loaded:
        display.line(found.origin())
    for name, path in files.items():
        _warn_of_choice(name, path, data, display)
    networks = [(found, placed(network, place)) for found, network in loaded]
    total = sum(len(world.part(pairs)) for found, _ in networks for pairs in sets[found.scale].values())
    with display.count("images evaluated") as count:
        scorer = _Scorer(world, total, count, precision=precision, tile=tile, ensemble=ensemble)
        for factor in scales:
            folder = pictures / f"x{factor}" if pictures and len(scales) > 1 else pictures
            scorer.score([each for each in networks if each[0].scale == factor], sets[factor], folder)
    results = [found for found, _ in loaded]
    how: dict[str, Any] = {"precision": precision, "ensemble": ensemble}
    how["protocol"] = GREY_PROTOCOL if grey_values else PROTOCOL
    for factor in scales:
        beside = row if reference and scale_of(reference) == factor else None
        of_scale = [found for found in results if found.scale == factor]
        print_scores(of_scale, **how, published=beside, console=display.console)
    if json_file is not None and world.leads:
        write_document(json_file, document(results, **how))
    if csv_file is not None and world.leads:
        write_images(csv_file, results)
    return results


def _refuse_other_scales(
    scales: Sequence[int], data: Sequence[Path], lr_dir: Path | None, reference: str | None
) -> None:
    if lr_dir is not None and (len(data) > 1 or len(scales) > 1):
        raise UserError("--lr belongs to one data set and one scale, but several are named; evaluate them one by one")
    if reference is not None and scale_of(reference) not in scales:
        raise UserError(f"--reference {reference} is not x{scales[0]}, as the network is; name a row of its scale")


def _load(
    name: str, path: Path, network_name: str | None, scale: int | None, *, raw: bool
) -> tuple[Evaluated, nn.Module]:
    """A network, and what there is to say of it, without figures yet."""
    network = load_network(path, name=network_name, scale=scale, raw=raw)
    file = weights_file(path, raw=raw)
    header = read_header(file)[1] if file.suffix == ".safetensors" else {}
    found = Evaluated(
        name,
        network=header.get("model") or network_name or _recognised(network),
        scale=int(network.scale),  # type: ignore[arg-type]
        parameters=parameters_of(network),
        file=file,
        step=int(header["step"]) if header.get("step", "").isdecimal() else None,
        weights={"ema.safetensors": "average", "weights.safetensors": "raw"}.get(file.name),
        scores={},
    )
    return found, network


def _recognised(network: nn.Module) -> str:
    """What the network of a bare file is called."""
    known = recognise(shapes_of(network.state_dict()))
    return known[0][0] if known else architecture_of(network).lower()


def _load_sets(
    data: Sequence[Path], scales: Sequence[int], lr_dir: Path | None, strict: bool, grey_values: bool, display: Display
) -> dict[int, Sets]:
    """All sets by scale and name, read before the first is evaluated: bad input is found at once."""
    sets = dict[int, Sets]()
    lines = dict[str, None]()  # what was done to HR is done for every scale
    for scale in scales:
        notes, sets[scale] = Notes(), {}
        for path in data:
            name = benchmark_name(path)
            if name in sets[scale]:
                raise UserError(f"two data sets are named {name}; evaluate them one by one")
            sets[scale][name] = load_benchmark(path, scale, lr_dir, notes, grey_values=grey_values)
        if strict:
            notes.raise_if_any()
        lines |= dict.fromkeys(notes.lines())
    for line in lines:
        display.line(line)
    return sets


class _Scorer:
    """Puts images through networks: those of this process, small groups of them at a time."""

    def __init__(self, world: World, total: int, count: Count, **options: Any) -> None:
        """Nothing is done yet.

        Args:
            world: The processes; all of them call `score`.
            total: Images times networks that this process has before it.
            count: Hears of each.
            options: Of `evaluate`.
        """
        self._world, self._options = world, options
        self._done, self._total, self._count = 0, total, count

    def score(self, networks: Sequence[tuple[Evaluated, nn.Module]], sets: Sets, pictures: Path | None) -> None:
        """Fill in the `scores` of networks of one scale, and draw pictures where there is a folder for them."""
        scale = networks[0][0].scale
        for name, pairs in sets.items():
            mine = self._world.part(pairs)
            parts: list[list[Scores]] = [[] for _ in range(1 + len(networks))]
            for first in range(0, len(mine), _TOGETHER):
                group = mine[first : first + _TOGETHER]
                images: Images = {pair.name: [] for pair in group}
                bicubic = partial(_keep, images if pictures else None, "bicubic")
                parts[0].append(evaluate(None, group, scale, on_image=bicubic))
                for part, (found, network) in zip(parts[1:], networks, strict=True):
                    heard = partial(self._hear, images if pictures else None, found.name, name)
                    part.append(evaluate(network, group, scale, on_image=heard, **self._options))
                if pictures is not None:
                    for pair in group:
                        panels = [*images[pair.name], ("HR", pair.hr)]
                        save_comparison(pictures / name / f"{pair.name}.png", panels, border=scale, grey=pair.grey)
            of_bicubic, *ours = (_gathered(part, self._world) for part in parts)
            for (found, _), scores in zip(networks, ours, strict=True):
                found.scores[name] = SetScores(scores, of_bicubic)

    def _hear(
        self, images: Images | None, who: str, data: str, pair: Pair, sr: NDArray[np.uint8], *figures: float | None
    ) -> None:
        """A network is done with an image."""
        _keep(images, f"{who}, mean of 8" if self._options["ensemble"] else who, pair, sr)
        self._done += 1
        self._count(self._done, self._total, f"{who} on {data}")


def _keep(images: Images | None, title: str, pair: Pair, sr: NDArray[np.uint8], *figures: float | None) -> None:
    """Hold what was made of an image until its picture is drawn, if one is."""
    if images is not None:
        images[pair.name].append((title, sr))


def _warn_of_choice(name: str, path: Path, data: Sequence[Path], display: Display) -> None:
    """Say of a run's best checkpoint that it was chosen on one of these sets, if it was."""
    chosen_on = _chosen_on(path)
    for each in data:
        if chosen_on is not None and _is_same_set(chosen_on, each):
            display.line(
                f"note: {name} was chosen as the best of its run on {benchmark_name(each)}: its figures flatter it"
            )


def _chosen_on(path: Path) -> Path | None:
    """The images that a run's best checkpoint was chosen on, where `path` is that checkpoint or a file in it."""
    folder = (path if path.is_dir() else path.parent).absolute()
    best = Checkpoints(folder.parent, 1).best()
    return RunSettings(folder.parent.parent).chosen_on if best is not None and best.samefile(folder) else None


def _is_same_set(a: Path, b: Path) -> bool:
    """Whether two paths lead to the same images; by name where `a` was a path on another machine or from elsewhere."""
    if not a.exists():
        return benchmark_name(a) == benchmark_name(b)
    return not {a.resolve(), (a / "HR").resolve()}.isdisjoint({b.resolve(), (b / "HR").resolve()})


def _gathered(parts: Sequence[Scores], world: World) -> Scores:
    """Parts one after the other, with the figures of the other processes in between, in the order of the images."""
    mine = Scores(
        [name for part in parts for name in part.names],
        [psnr for part in parts for psnr in part.psnr],
        [ssim for part in parts for ssim in part.ssim or []],
    )
    theirs = world.gather(mine)
    order = [(i % world.size, i // world.size) for i in range(sum(len(each.names) for each in theirs))]
    return Scores(
        [theirs[p].names[i] for p, i in order],
        [theirs[p].psnr[i] for p, i in order],
        [(theirs[p].ssim or [])[i] for p, i in order],
    )
