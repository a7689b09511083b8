"""The rows that the benchmarks of the operations leave behind: one per operation, case, contestant and cache state."""

import csv
import io
from pathlib import Path
from typing import NamedTuple


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


def _number(value: object) -> object:
    return float(f"{value:.4g}") if isinstance(value, float) else value
