"""What the compiler makes of the kernels on every architecture, without a GPU: `python benchmarks/compile_report.py`.

Bytes are for a batch of 16 HR patches of 192 pixels, RGB, and an update's for 2^20 parameters: each input once, each
output once. The floor is the time that the named card needs to move them at its data sheet's bandwidth; it was not
measured. Occupancy is the share of a multiprocessor's warps that registers, shared memory and the limit of blocks leave
room for.
"""

import argparse
import csv
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import groupby, product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from rich.progress import track

from eco_fast.console import plain_console, plain_table
from eco_kernels.offline import ARCHITECTURES, DEFAULTS, Report, inspect, specialisations


class Card(NamedTuple):
    """A card of an architecture (data sheets), and limits of a multiprocessor (CUDA C++ Programming Guide)."""

    name: str
    gb_per_s: int
    warps: int
    blocks: int
    shared_bytes: int


CARDS = {
    80: Card("A100 80 GB", 2039, 64, 32, 164 << 10),
    86: Card("RTX 3090", 936, 48, 16, 100 << 10),
    89: Card("RTX 4090", 1008, 48, 24, 100 << 10),
    90: Card("H100 SXM", 3350, 64, 32, 228 << 10),
    100: Card("B200", 8000, 64, 32, 228 << 10),
    120: Card("RTX 5090", 1792, 48, 24, 100 << 10),
}
_REGISTERS = 65536  # of a multiprocessor
_REGISTER_UNIT = 256  # a warp gets a multiple of these
_RESERVED_SHARED = 1024  # per block, for the system

COLUMNS = (
    "kernel",
    "specialisation",
    "arch",
    "registers",
    "spill_bytes",
    "stack_bytes",
    "shared_bytes",
    "ldg128",
    "ldg",
    "stg128",
    "stg",
    "instructions_per_output",
    "bytes",
    "floor_us",
    "occupancy",
)


def occupancy(card: Card, registers: int, shared_bytes: int, warps: int) -> float:
    """Resident warps over those that a multiprocessor can hold, for blocks of `warps` warps."""
    per_warp = -(-registers * 32 // _REGISTER_UNIT) * _REGISTER_UNIT
    blocks = min(card.blocks, card.warps // warps, _REGISTERS // (per_warp * warps))
    if shared_bytes:
        blocks = min(blocks, card.shared_bytes // (shared_bytes + _RESERVED_SHARED))
    return blocks * warps / card.warps


def rows(everything: bool) -> Iterator[dict[str, object]]:
    """A row for every specialisation (or the defaults of training) and architecture; compiled on all cores."""
    kernels = [kernel for kernel in specialisations() if everything or kernel.name in DEFAULTS]
    cases = list(product(range(len(kernels)), ARCHITECTURES))
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        reports = pool.map(_compile, [kernels[i].name for i, _ in cases], [arch for _, arch in cases])
        for (i, arch), report in track(zip(cases, reports, strict=True), "compiling", len(cases), transient=True):
            card, kernel = CARDS[arch], kernels[i]
            yield {
                "kernel": kernel.operation,
                "specialisation": kernel.name,
                "arch": f"sm_{arch}",
                "registers": report.registers,
                "spill_bytes": report.spill_bytes,
                "stack_bytes": report.stack_bytes,
                "shared_bytes": report.shared_bytes,
                "ldg128": report.loads_128,
                "ldg": report.loads,
                "stg128": report.stores_128,
                "stg": report.stores,
                "instructions_per_output": round(report.instructions_per_output, 1),
                "bytes": kernel.bytes,
                "floor_us": round(kernel.bytes / card.gb_per_s / 1e3, 2),
                "occupancy": round(occupancy(card, report.registers, report.shared_bytes, kernel.num_warps), 2),
            }


def _compile(name: str, arch: int) -> Report:
    """Kernels do not travel between processes; their names do."""
    return inspect(next(kernel for kernel in specialisations() if kernel.name == name), arch)


def main(csv_file: Path | None = None, everything: bool = False) -> None:
    """Print the report, and write it as CSV.

    Args:
        csv_file: Where rows go, with `COLUMNS`.
        everything: Every specialisation, not only the defaults of training: some 2,000 compilations.
    """
    found = list(rows(everything))
    if csv_file is not None:
        with csv_file.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(found)
    _print(found)


def _print(rows: Sequence[Mapping[str, Any]]) -> None:
    """What decides between kernels; the rest is for the CSV file."""
    figures = ("arch", "registers", "spilled", "occupancy")
    table = plain_table("kernel", *figures, figures=figures)
    for name, found in groupby(rows, lambda row: row["specialisation"]):
        head = name.replace("-", " ")  # words, which a line can end between
        for row in found:
            occupied = f"{100 * row['occupancy']:.0f} %"
            table.add_row(head, row["arch"], str(row["registers"]), f"{row['spill_bytes']} B", occupied)
            head = ""
        table.add_section()
    console = plain_console()
    console.print("Compiled kernels: registers and spilled bytes of a thread, share of the warps that find room")
    console.print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--csv", type=Path, help="write the rows to this file")
    parser.add_argument("--all", action="store_true", help="every specialisation, not only the defaults of training")
    arguments = parser.parse_args()
    main(arguments.csv, arguments.all)
