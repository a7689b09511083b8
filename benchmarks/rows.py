"""The rows that the benchmarks of the operations leave behind: one per operation, case, contestant and cache state."""

import csv
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from eco_fast.commands.doctor import processor
from eco_fast.extras import version
from eco_fast.measured import marked

Record = Callable[..., None]
"""Keeps a case: (case, its durations in seconds, packages it depends on, figure=value, ...)"""


class Row(NamedTuple):
    """One contestant's figures with what they were measured on. None is an empty field."""

    operation: str
    case: str
    contestant: str
    """`product`, or what it is compared with."""
    cache: str
    """`warm` or `cold`, as in `timing`."""
    device: str
    threads: int
    torch: str
    triton: str
    p20_us: float
    p50_us: float
    p80_us: float
    bytes: int
    """What the operation must move: each input once, each output once."""
    gb_per_s: float
    """`bytes` in the median time, for every contestant: what a chain moves in between counts against it."""
    percent_of_copy: float
    """Of the bandwidth of a copy within the device's memory in the same run; small cases in cache can exceed 100."""
    launches: float | None
    """Kernels, copies and fills that one call puts on a CUDA device."""
    ratio: float
    """Median over the product's median."""


def write_rows(file: Path, rows: list[Row]) -> None:
    """Write CSV with a header; numbers with as many digits as mean something."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    for row in rows:
        writer.writerow(["" if value is None else _number(value) for value in row])
    file.write_text(text.getvalue(), encoding="utf-8")


def write_figures(file: Path, figures: list[dict[str, object]]) -> None:
    """Write CSV with a column per key that occurs: figures of different benchmarks leave each other's empty."""
    keys = list(dict.fromkeys(key for figure in figures for key in figure))
    text = io.StringIO()
    writer = csv.DictWriter(text, keys, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if v is None else v for k, v in figure.items()} for figure in figures)
    file.write_text(text.getvalue(), encoding="utf-8")


def environment(*packages: str, quick: bool = False) -> dict[str, object]:
    """What a figure was measured on, or tried; `packages` are those, besides torch, that it depends on."""
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return {
        "hardware": marked(f"{gpu}{processor()}, {len(os.sched_getaffinity(0))} cores", quick=quick),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        **{package: version_of(package) for package in packages},
    }


def version_of(package: str) -> str:
    """The version of a package, "none" where it is not installed."""
    return version(package) or "none"


def _number(value: object) -> object:
    return float(f"{value:.4g}") if isinstance(value, float) else value
