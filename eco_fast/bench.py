"""`eco-fast bench`: runs the benchmarks of the repository and prints what they wrote."""

import csv
import importlib
import importlib.util
import subprocess
import sys
import tempfile
import time
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.table import Table

from eco_fast.errors import UserError
from eco_fast.plots import plot_figures, plot_kernels, plot_roofline

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
"""Not part of the package: there in the source tree, and so in an editable installation."""

SUITES = {
    "kernels": ("test_kernels.py",),
    "data": ("test_data.py", "test_prepare.py"),
    "step": ("test_waterfall.py", "test_step.py"),
    "evaluate": ("test_evaluate.py",),
}
"""Their files."""

_MEASURED_ON = ("hardware", "threads", "torch", "nvidia-dali-cuda130", "pillow", "numpy", "scikit-image")
_HARDWARE = ("device", "threads", "torch", "triton")


def report_kernels(csv_file: Path | None = None) -> None:
    """Compile the kernels of training for all architectures and report, without running anything; needs no GPU.

    Raises:
        UserError: The source tree or Triton is missing, or the file cannot be written.
    """
    _look_around(csv_file)
    _need("triton", "pip install triton")
    if str(BENCHMARKS) not in sys.path:
        sys.path.append(str(BENCHMARKS))  # by name, and not by file, so that its worker processes find it too
    importlib.import_module("compile_report").main(csv_file)


def bench_suite(name: str, csv_file: Path | None = None, plot: Path | None = None, *, quick: bool = False) -> int:
    """Run one of `SUITES` and print its figures.

    Args:
        name: Of the suite.
        csv_file: Where the rows go.
        plot: Where their plot goes; of the kernels also a roofline, `NAME_roofline.png`.
        quick: Tiny problems, one round: shows that everything runs, not how fast.

    Returns:
        The number of rows; 0 where nothing could run.

    Raises:
        UserError: The source tree or a package is missing, a file cannot be written, or a benchmark failed.
    """
    _look_around(csv_file)
    _look_around(plot)
    for package in ("pytest", "pytest_benchmark"):
        _need(package, 'pip install "eco-fast[dev]"')
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.csv" if csv_file is None else csv_file.absolute()
        code = subprocess.run(_command(name, file, quick), cwd=ROOT, check=False).returncode
        rows = _read(file)
    if rows:
        (_print if name == "kernels" else _print_figures)(rows)
        if plot is not None:
            _plot(name, rows, plot)
    elif plot is not None:
        plot.unlink(missing_ok=True)  # empty
    if code != 0:
        raise UserError(f"the benchmarks failed (pytest's exit code is {code}); its output is above")
    return len(rows)


def run_all(out: Path, *, quick: bool = False) -> dict[str, str]:
    """Run all suites one after the other, with rows and plots as `SUITE.csv` and `SUITE.png` in a folder.

    Returns:
        Suite -> "ran", or "skipped: why", or "failed: why".

    Raises:
        UserError: The folder cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}; choose another folder") from error
    states = {}
    started = time.monotonic()
    for number, name in enumerate(SUITES, start=1):
        print(f"[{number}/{len(SUITES)}] {name}, after {(time.monotonic() - started) / 60:.1f} minutes", flush=True)
        try:
            rows = bench_suite(name, out / f"{name}.csv", out / f"{name}.png", quick=quick)
            states[name] = "ran" if rows else "skipped: nothing of it can run here"
        except UserError as error:
            states[name] = f"failed: {error}"
    return states


def bench_all(out: Path, *, quick: bool = False) -> None:
    """`run_all`, and what became of every suite.

    Raises:
        UserError: A suite failed.
    """
    states = run_all(out, quick=quick)
    for name, state in states.items():
        print(f"{name}: {state}")
    print(f"rows and plots: {out}")
    if failed := [name for name, state in states.items() if state.startswith("failed")]:
        raise UserError(f"failed: {', '.join(failed)}; their output is above")


def _command(name: str, file: Path, quick: bool) -> list[str]:
    files = [f"benchmarks/{each}" for each in SUITES[name]]
    option = "--rows" if name == "kernels" else "--figures"
    command = [sys.executable, "-m", "pytest", *files, "-q", "--benchmark-quiet", "-p", "no:cacheprovider"]
    return [*command, "--disable-warnings", option, str(file), *(["--quick"] if quick else [])]


def _read(file: Path) -> list[dict[str, str]]:
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def _plot(name: str, rows: list[dict[str, str]], file: Path) -> None:
    if name != "kernels":
        plot_figures(rows, file)
        return
    on_device = [row for row in rows if row["device"] == rows[0]["device"]]  # some run on the CPU wherever others do
    plot_kernels(on_device, file)
    plot_roofline(on_device, file.with_stem(f"{file.stem}_roofline"))


def _look_around(file: Path | None) -> None:
    if not (BENCHMARKS / "test_kernels.py").is_file():
        raise UserError(f"{BENCHMARKS} is missing: benchmarks need the source tree, installed with `pip install -e .`")
    if file is not None:
        _empty(file)


def _need(package: str, mend: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UserError(f"this needs the package {package}: {mend}")


def _empty(file: Path) -> None:
    """Learn now, not after minutes, that a file cannot be written; and rows of an earlier run must not pass as new."""
    try:
        file.write_bytes(b"")
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}") from error


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
