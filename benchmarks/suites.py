"""Runs the benchmarks of this folder for `eco-fast bench` and prints what they wrote."""

import csv
import importlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from tables import print_figures, print_kernels

from eco_fast.console import plain_console
from eco_fast.errors import UserError
from eco_fast.extras import install
from eco_fast.files import writing
from eco_fast.measured import QUICK
from eco_fast.plots import plot_figures, plot_kernels, plot_roofline
from eco_fast.units import clock

BENCHMARKS = Path(__file__).parent
ROOT = BENCHMARKS.parent


class Suite(NamedTuple):
    """Benchmarks that are run together."""

    files: tuple[str, ...]
    needs: tuple[str, ...] = ()  # packages, besides those of the tests and of training
    photographs: bool = False


SUITES = {
    "kernels": Suite(("test_kernels.py",)),
    "data": Suite(("test_data.py", "test_prepare.py"), photographs=True),
    "step": Suite(("test_waterfall.py", "test_step.py")),
    "evaluate": Suite(("test_evaluate.py",), ("skimage",)),
}

_FIXES = {
    "pytest": install("dev"),
    "pytest_benchmark": install("dev"),
    "skimage": install("demo"),
    "triton": "pip install triton",
}
_PHOTOGRAPHS = "train/DIV2K_0901-1000_quarter/*.png"  # in the folder that ECO_FAST_TESTDATA names
_NO_TESTS = 5  # pytest's exit code where every file was skipped as a whole


def report_kernels(csv_file: Path | None = None) -> None:
    """Compile the kernels of training for all architectures and report, without running anything; needs no GPU.

    Raises:
        UserError: Triton is missing, or the file cannot be written.
    """
    _refuse(_what_is_missing("triton"))
    _empty(csv_file)
    importlib.import_module("compile_report").main(csv_file)


def bench_suite(name: str, csv_file: Path | None = None, plot: Path | None = None, *, quick: bool = False) -> str:
    """Run one of `SUITES` and print its figures.

    Args:
        name: Of the suite.
        csv_file: Where the rows go.
        plot: Where their plot goes; of the kernels also a roofline, `NAME_roofline.png`.
        quick: Tiny problems, one round: shows that everything runs, not how fast.

    Returns:
        "ran", or "skipped: why" where pytest skipped every benchmark; there is no plot then.

    Raises:
        UserError: The suite cannot run here, a file cannot be written, or a benchmark failed.
    """
    _refuse(why_not(name))
    _empty(csv_file)
    _clear(name, plot)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.csv" if csv_file is None else csv_file.absolute()
        outcomes = Path(folder) / "outcomes.xml"
        code = subprocess.run(_command(name, file, outcomes, quick), cwd=ROOT, check=False).returncode
        rows = _read(file)
        state = _state(outcomes) if code in (0, _NO_TESTS) else ""
    if rows:
        (print_kernels if name == "kernels" else print_figures)(rows, plain_console())
        if quick:
            print(QUICK, flush=True)
        _plot(name, rows, plot)
    if not state:
        raise UserError(f"the benchmarks failed (pytest's exit code is {code}); its output is above")
    return state


def run_all(out: Path, *, quick: bool = False) -> dict[str, str]:
    """Run all suites one after the other, with rows and plots as `SUITE.csv` and `SUITE.png` in a folder.

    What does not run leaves neither, also none of an earlier run. A suite that fails may leave the rows it had.

    Returns:
        Suite -> "ran", or "skipped: why", or "failed: why".

    Raises:
        UserError: The folder cannot be made.
    """
    with writing(out, "choose another folder"):
        out.mkdir(parents=True, exist_ok=True)
    states = {}
    started = time.monotonic()
    for number, name in enumerate(SUITES, start=1):
        print(f"[{number}/{len(SUITES)}] {name}, after {clock(time.monotonic() - started)}", flush=True)
        states[name] = _run_one(name, out, quick)
        if states[name] != "ran":
            print(f"{name}: {states[name]}", flush=True)
    return states


def bench_all(out: Path, *, quick: bool = False) -> None:
    """`run_all`, and what became of every suite.

    Raises:
        UserError: A suite failed, or the folder cannot be made.
    """
    states = run_all(out, quick=quick)
    print()
    for name, state in states.items():
        print(f"{name}: {state}")
    print(f"rows and plots: {out}")
    if failed := [name for name, state in states.items() if state.startswith("failed")]:
        raise UserError(f"failed: {', '.join(failed)}; their output is above")


def why_not(name: str) -> str:
    """Why a suite cannot run here, with what helps, in one line; empty if it can."""
    suite = SUITES[name]
    data = os.environ.get("ECO_FAST_TESTDATA")
    if suite.photographs and data and not any(Path(data).glob(_PHOTOGRAPHS)):
        return f"{data} has no {_PHOTOGRAPHS}; let ECO_FAST_TESTDATA name a folder that has, or unset it"
    photographs = ("skimage",) if suite.photographs and not data else ()  # it brings some of its own
    return _what_is_missing("pytest", "pytest_benchmark", *suite.needs, *photographs)


def _what_is_missing(*packages: str) -> str:
    missing = next((package for package in packages if not _is_installed(package)), None)
    return "" if missing is None else f"this needs the package {missing}: {_FIXES[missing]}"


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _refuse(reason: str) -> None:
    if reason:
        raise UserError(reason)


def _run_one(name: str, out: Path, quick: bool) -> str:
    """Run a suite and say what became of it."""
    file, plot = out / f"{name}.csv", out / f"{name}.png"
    file.unlink(missing_ok=True)
    _clear(name, plot)
    if reason := why_not(name):
        return f"skipped: {reason}"
    try:
        state = bench_suite(name, file, plot, quick=quick)
    except UserError as error:
        state = f"failed: {error}"
    if not _read(file):
        file.unlink(missing_ok=True)
    return state


def _command(name: str, file: Path, outcomes: Path, quick: bool) -> list[str]:
    files = [str(BENCHMARKS / each) for each in SUITES[name].files]
    option = "--rows" if name == "kernels" else "--figures"
    command = [sys.executable, "-m", "pytest", *files, "-q", "--benchmark-quiet", "-p", "no:cacheprovider"]
    command += ["--disable-warnings", f"--junitxml={outcomes}", option, str(file)]
    return [*command, "--quick"] if quick else command


def _state(outcomes: Path) -> str:
    """What became of a suite in which nothing failed: "ran", or "skipped: why"."""
    skipped = [case.find("skipped") for case in ElementTree.parse(outcomes).iter("testcase")]
    if None in skipped:
        return "ran"
    reasons = dict.fromkeys(_reason(each) for each in skipped if each is not None)
    return f"skipped: {'; '.join(reasons) or 'there is no benchmark in it'}"


def _reason(skipped: ElementTree.Element) -> str:
    message = skipped.get("message", "")
    if message != "collection skipped":
        return message
    return (skipped.text or "").rpartition("Skipped: ")[2][:-2]  # ('file', line, 'Skipped: why')


def _read(file: Path) -> list[dict[str, str]]:
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def _plot(name: str, rows: list[dict[str, str]], file: Path | None) -> None:
    if file is None:
        return
    if name == "kernels":
        plot_kernels(rows, file)
        plot_roofline(rows, _roofline(file))
    else:
        plot_figures(rows, file)


def _roofline(plot: Path) -> Path:
    return plot.with_stem(f"{plot.stem}_roofline")


def _empty(file: Path | None) -> None:
    """Learn now, not after minutes, that a file cannot be written; and rows of an earlier run must not pass as new."""
    if file is not None:
        with writing(file):
            file.write_bytes(b"")


def _clear(name: str, plot: Path | None) -> None:
    """Learn now that a plot cannot be written, and leave none of an earlier run."""
    if plot is None:
        return
    for file in (plot, _roofline(plot)) if name == "kernels" else (plot,):
        _empty(file)
        file.unlink()
