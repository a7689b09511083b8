"""Validation: the sets of a run, and how a network does on them."""

import os
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from torch import nn

from eco_fast.config import DataConfig
from eco_fast.data.notes import Notes
from eco_fast.display import Display
from eco_fast.errors import UserError
from eco_fast.evaluate.benchmark import Pair, benchmark_name, load_benchmark
from eco_fast.evaluate.bicubic import bicubic_upsample
from eco_fast.evaluate.metrics import psnr_y
from eco_fast.evaluate.run import evaluate
from eco_fast.train.world import World


class ValidSet(NamedTuple):
    """Images that a run is validated on."""

    name: str  # of its folder
    pairs: list[Pair]
    bicubic: float  # dB PSNR-Y, mean over the images


def load_pairs(data: DataConfig, scale: int, notes: Notes) -> dict[str, list[Pair]]:
    """The images of every set by its name, in the order in which sets are named.

    Args:
        data: Names the sets.
        scale: 2, 3 or 4.
        notes: Takes the conversions and crops.

    Raises:
        UserError: As `load_benchmark`; or two sets have one name, or LR images are named for some sets only.
    """
    if data.valid_lr and len(data.valid_lr) != len(data.valid):
        raise UserError(
            f"data.valid_lr names {len(data.valid_lr)} folders of LR images for {len(data.valid)} validation sets; "
            "name one for each set in the same order, or leave it out"
        )
    paths: dict[str, tuple[Path, Path | None]] = {}
    for path, lr in zip_longest(data.valid, data.valid_lr):
        name = benchmark_name(path)
        if name in paths:
            raise UserError(f"two validation sets are called {name}: {paths[name][0]} and {path}; rename a folder")
        paths[name] = path, lr
    return {name: load_benchmark(path, scale, lr, notes) for name, (path, lr) in paths.items()}


def with_bicubic(loaded: dict[str, list[Pair]], scale: int, world: World, display: Display) -> list[ValidSet]:
    """The sets with the figure of bicubic, which every process of the run computes its share of."""
    total = sum(len(world.part(pairs)) for pairs in loaded.values())
    sets, done = [], 0

    def measure(pair: Pair) -> float:
        return psnr_y(bicubic_upsample(pair.lr, scale), pair.hr, scale)

    with display.count("images measured with bicubic") as show, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for name, pairs in loaded.items():
            values = []
            for value in pool.map(measure, world.part(pairs)):
                values.append(value)
                show(done := done + 1, total)
            sets.append(ValidSet(name, pairs, _mean(values, world)))
    return sets


def validate(network: nn.Module, pairs: Sequence[Pair], scale: int, world: World, precision: str) -> float:
    """Mean PSNR-Y of a network in dB, every process working on its share of the images.

    Args:
        network: As in `evaluate`; the same on every process.
        pairs: The images.
        scale: 2, 3 or 4.
        world: All processes of the run call this.
        precision: "fp32" or "bf16".
    """
    scores = evaluate(network, world.part(pairs), scale, ssim=False, precision=precision)
    return _mean(scores.psnr, world)


def _mean(values: Sequence[float], world: World) -> float:
    """Over all processes."""
    if world.size == 1:
        return statistics.fmean(values)
    total, count = world.sums([sum(values), len(values)])
    return total / count
