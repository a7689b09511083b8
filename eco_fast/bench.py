"""`eco-fast bench`: runs the benchmarks of the repository and prints what they wrote."""

import csv
import importlib
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.table import Table

from eco_fast.errors import UserError

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
"""Not part of the package: there in the source tree, and so in an editable installation."""

SUITES = {"data": ("test_data.py", "test_prepare.py"), "step": ("test_step.py",), "evaluate": ("test_evaluate.py",)}
"""Suites besides the kernels' and their files."""

_MEASURED_ON = ("hardware", "threads", "torch", "nvidia-dali-cuda130", "pillow", "numpy", "scikit-image")
_HARDWARE = ("device", "threads", "torch", "triton")


def bench_kernels(csv_file: Path | None = None, *, offline: bool = False, quick: bool = False) -> None:
    """Time the operations of `eco_kernels` against what they replace, or report on their compiled code.

    Args:
        csv_file: Where the rows go.
        offline: Compile for all architectures and report, without running anything; needs no GPU.
        quick: Tiny problems, one round: shows that everything runs, not how fast.

    Raises:
        UserError: The source tree or a package is missing, the file cannot be written, or contestants disagree.
    """
    _look_around(csv_file)
    if offline:
        _need("triton", "pip install triton")
        _report(csv_file)
    else:
        _run(("test_kernels.py",), "--rows", csv_file, quick, _print)


def bench_suite(name: str, csv_file: Path | None = None, *, quick: bool = False) -> None:
    """Run one of `SUITES` and print its figures.

    Args:
        name: Of the suite.
        csv_file: Where the rows go.
        quick: Tiny problems, one round: shows that everything runs, not how fast.

    Raises:
        UserError: As `bench_kernels`.
    """
    _look_around(csv_file)
    _run(SUITES[name], "--figures", csv_file, quick, _print_figures)


def _look_around(csv_file: Path | None) -> None:
    if not (BENCHMARKS / "test_kernels.py").is_file():
        raise UserError(f"{BENCHMARKS} is missing: benchmarks need the source tree, installed with `pip install -e .`")
    if csv_file is not None:
        _empty(csv_file)


def _need(package: str, mend: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UserError(f"this needs the package {package}: {mend}")


def _empty(file: Path) -> None:
    """Learn now, not after minutes, that a file cannot be written; and rows of an earlier run must not pass as new."""
    try:
        file.write_bytes(b"")
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}") from error


def _report(csv_file: Path | None) -> None:
    if str(BENCHMARKS) not in sys.path:
        sys.path.append(str(BENCHMARKS))  # by name, and not by file, so that its worker processes find it too
    importlib.import_module("compile_report").main(csv_file)


def _run(
    files: Sequence[str], option: str, csv_file: Path | None, quick: bool, show: Callable[[list[dict[str, str]]], None]
) -> None:
    for package in ("pytest", "pytest_benchmark"):
        _need(package, 'pip install "eco-fast[dev]"')
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.csv" if csv_file is None else csv_file.absolute()
        command = [sys.executable, "-m", "pytest", *(f"benchmarks/{name}" for name in files), "-q", "--benchmark-quiet"]
        command += ["-p", "no:cacheprovider", "--disable-warnings", option, str(file)]
        command += ["--quick"] if quick else []
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        if file.is_file():
            with file.open(newline="", encoding="utf-8") as opened:
                show(list(csv.DictReader(opened)))
    if code != 0:
        raise UserError(f"the benchmarks failed (pytest's exit code is {code}); its output is above")


def _print_figures(rows: list[dict[str, str]]) -> None:
    """One table per benchmark, with the columns that it fills; what they were measured on below."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    for name, found in groupby(rows, lambda row: row["benchmark"]):
        group = list(found)
        keys = [key for key in group[0] if key not in (*_MEASURED_ON, "benchmark") and any(row[key] for row in group)]
        table = Table(
            title=f"{name}: {group[0]['hardware']}, {group[0]['threads']} threads, PyTorch {group[0]['torch']}"
        )
        for key in keys:
            table.add_column(key.replace("_", " "), justify="left" if key == "case" else "right")
        for row in group:
            table.add_row(*(row[key] or "-" for key in keys))
        console.print(table)


def _print(rows: list[dict[str, str]]) -> None:
    """One table per hardware: its name stands in the title and not in every line."""
    tables: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        tables.setdefault(tuple(row[key] for key in _HARDWARE), []).append(row)
    # Into a file or a pipe rich would print 80 columns, too few.
    console = Console(width=None if sys.stdout.isatty() else 140)
    for hardware, group in tables.items():
        console.print(_table(hardware, group))


def _table(hardware: tuple[str, ...], rows: list[dict[str, str]]) -> Table:
    device, threads, torch, triton = hardware
    table = Table(title=f"{device}, {threads} CPU threads, PyTorch {torch}, Triton {triton}")
    for name in ("operation", "case", "contestant"):
        table.add_column(name)
    for name in ("p20 us", "p50 us", "p80 us", "GB/s", "% of copy", "launches", "x product"):
        table.add_column(name, justify="right")
    keys = ("p20_us", "p50_us", "p80_us", "gb_per_s", "percent_of_copy", "launches", "ratio")
    several_caches = len({row["cache"] for row in rows}) > 1
    for (operation, case), group in groupby(rows, lambda row: (row["operation"], row["case"])):
        for i, row in enumerate(group):
            name = f"{row['contestant']}, {row['cache']}" if several_caches else row["contestant"]
            head = ("" if i else operation, "" if i else case, name)
            table.add_row(*head, *(_number(row[key]) for key in keys))
        table.add_section()
    return table


def _number(text: str) -> str:
    """At least three digits of it, without an exponent."""
    if not text:
        return "-"
    value = float(text)
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"
