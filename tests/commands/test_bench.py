"""`eco-fast bench`: tables, rows, plots, what became of every suite, and one line where something is missing."""

import csv
import importlib.util
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import suites
import tables
from rich.console import Console

from eco_fast.errors import UserError
from eco_fast.measured import QUICK, comparison, headline
from tests.conftest import exit_code

ROOT = Path(__file__).parents[2]
COLUMNS = (
    "operation,case,contestant,cache,device,threads,torch,triton,p20_us,p50_us,p80_us,bytes,gb_per_s,percent_of_copy,"
    "launches,ratio"
)
OPERATIONS = ["gather_patches", "gather_mix", "bicubic_downsample", "downsample_mix", "eco_loss_with_grad"]
OPERATIONS += ["update", "linear_tail"]


def _fail(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must end with one line on stderr; returns the line."""
    assert exit_code(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


@pytest.mark.slow
def test_a_quick_run_prints_a_table_and_writes_rows(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.csv"
    code = exit_code("bench", "kernels", "--quick", "--csv", file, "--plot", tmp_path / "plot.png")
    printed = capfd.readouterr().out
    assert code == 0, printed
    with file.open(newline="") as opened:
        reader = csv.DictReader(opened)
        rows = list(reader)
    assert f"\n{QUICK}\n" in printed and all(row["device"].startswith(f"{QUICK}. ") for row in rows)
    assert reader.fieldnames is not None and ",".join(reader.fieldnames) == COLUMNS
    assert list(dict.fromkeys(row["operation"] for row in rows)) == OPERATIONS
    assert {path.name for path in tmp_path.glob("*.png")} == {"plot.png", "plot_roofline.png"}
    for operation in OPERATIONS:
        assert operation in printed
        contestants = {row["contestant"] for row in rows if row["operation"] == operation}
        assert {"product", "eager"} <= contestants
    assert {"F.interpolate", "two matmuls", "NumPy imresize"} <= {row["contestant"] for row in rows}
    for row in rows:
        assert 0 < float(row["p20_us"]) <= float(row["p50_us"]) <= float(row["p80_us"])
        assert int(row["bytes"]) / float(row["p50_us"]) / 1000 == pytest.approx(float(row["gb_per_s"]), rel=0.01)
        assert float(row["percent_of_copy"]) > 0
        assert row["device"] and int(row["threads"]) > 0 and row["torch"] and row["triton"]
        if row["contestant"] == "product":
            assert float(row["ratio"]) == 1
    bytes_of = {(row["operation"], row["case"]): int(row["bytes"]) for row in rows}
    assert bytes_of["gather_patches", "24 px"] == 2 * 24 * 24 * 3 * 2  # two patches, read and written
    assert bytes_of["bicubic_downsample", "x2"] == 2 * 3 * (24 * 24 + 12 * 12)
    assert bytes_of["eco_loss_with_grad", "bfloat16"] == 2 * 3 * 24 * 24 * (2 + 1 + 1 + 2) + 4
    features, parameters = 2 * 64 * 12 * 12, (256 + 3) * (64 * 9 + 1)
    assert bytes_of["linear_tail", "x2"] == 2 * (features * 2 + parameters * 4 + 2 * 3 * 24 * 24 * 4)


def as_printed(rows: list[dict[str, str]], width: int) -> str:
    """Rows of a suite as a table on a console of this width; no line is wider, and nothing is cut."""
    console = Console(width=width, file=io.StringIO())
    (tables.print_kernels if "operation" in rows[0] else tables.print_figures)(rows, console)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width and "\u2026" not in text
    return text


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("name", ["kernels_cpu", "data", "step", "evaluate", "waterfall"])
def test_tables_fit_the_terminal(name: str, width: int) -> None:
    """Figures stay whole with their units, and every word of a case with its letters."""
    with (ROOT / "benchmarks" / "results" / f"{name}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    text = as_printed(rows, width)
    words = set(text.split())
    for row in rows:
        if name == "kernels_cpu":
            assert {row["operation"], *row["case"].split(), *row["contestant"].split()} <= words
        else:
            assert {*row["case"].split(), *comparison(row).split()} <= words
            assert headline(row) and headline(row) in text


def test_figures_of_a_table_have_units() -> None:
    row = {"hardware": "h", "threads": "2", "torch": "2", "precision": "fp32", "ratio": "2.5", "of": "speed of plain"}
    rows = [
        {"benchmark": "step", "case": "slow", "ms_per_step": "40495.0", **row},
        {"benchmark": "step", "case": "memory", "peak_mb": "851", **row},
    ]
    slow, memory = (line for line in as_printed(rows, 80).splitlines() if "\u2502" in line)
    assert [cell.strip() for cell in slow.split("\u2502")[1:4]] == ["slow", "40.5 s per step", "2.5 x speed of plain"]
    assert "892 MB" in memory
    assert as_printed(rows, 80).startswith("step: h, 2 threads, fp32, PyTorch 2\n")


def test_a_long_word_goes_on_in_the_next_line() -> None:
    row = {"benchmark": "b", "case": "x" * 200, "seconds": "1", "hardware": "h", "threads": "1", "torch": "2"}
    assert as_printed([row], 60).count("x") == 200


def test_offline_calls_the_compile_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    report = ModuleType("compile_report")
    monkeypatch.setattr(report, "main", called.append, raising=False)
    monkeypatch.setitem(sys.modules, "compile_report", report)
    monkeypatch.setattr(sys, "path", list(sys.path))
    suites.report_kernels(tmp_path / "report.csv")
    assert called == [tmp_path / "report.csv"]


@pytest.mark.parametrize("choice", [["kernels"], ["kernels", "--offline"], ["all"]])
def test_without_the_source_tree(tmp_path: Path, choice: list[str]) -> None:
    """A copy of the package alone, as a wheel installs it."""
    shutil.copytree(ROOT / "eco_fast", tmp_path / "eco_fast", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "eco_fast", "bench", *choice]
    paths = os.pathsep.join([str(tmp_path), str(ROOT / "kernels")])
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"{tmp_path / 'benchmarks'} is missing: benchmarks need the source tree" in done.stderr


@pytest.mark.parametrize("package", ["pytest", "pytest_benchmark"])
def test_without_the_development_packages(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    assert f"{package}: pip install pytest pytest-benchmark" in _fail(capsys, "bench", "kernels")


def test_rows_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (tmp_path, tmp_path / "missing" / "rows.csv"):
        for option in ([], ["--offline"]):
            assert f"cannot write {file}" in _fail(capsys, "bench", "kernels", "--csv", file, *option)
        assert f"cannot write {file}" in _fail(capsys, "bench", "kernels", "--plot", file)


def test_failed_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suites.sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="exit code is 1"):
        suites.bench_suite("kernels", quick=True)


@pytest.mark.slow
def test_another_suite(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("skimage")
    file = tmp_path / "rows.csv"
    code = exit_code("bench", "evaluate", "--quick", "--csv", file, "--plot", tmp_path / "plot.png")
    printed = capfd.readouterr().out
    assert code == 0, printed
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert {row["benchmark"] for row in rows} == {"evaluate"} and len(rows) == 4
    assert (tmp_path / "plot.png").stat().st_size > 1000
    assert all(row["case"] in printed and row["torch"] for row in rows)
    assert f"\n{QUICK}\n" in printed and all(row["hardware"].startswith(f"{QUICK}. ") for row in rows)


@pytest.mark.full
def test_without_dali_the_others_compete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("skimage")
    (tmp_path / "path" / "nvidia").mkdir(parents=True)
    (tmp_path / "path" / "nvidia" / "__init__.py").touch()  # in place of the one that has DALI in it
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "path"), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delenv("ECO_FAST_TESTDATA", raising=False)
    assert exit_code("bench", "data", "--quick", "--csv", tmp_path / "rows.csv") == 0
    printed = capfd.readouterr().out
    for contestants in ("files", "plain decoding"):
        assert f"{contestants}: left out, since NVIDIA DALI is not installed; pip install nvidia-dali" in printed
    with (tmp_path / "rows.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    competing = ["loader", "mapped", "mapped, cold files", "resident"]
    others = ["wait of edsr-tiny for mapped", "wait of edsr-baseline for mapped", "memory of mapped"]
    preparing = ["decode + write", "with x4", "with x2, x3, x4"]
    assert [row["case"] for row in rows] == competing + others + preparing
    assert not any(row["of_decoding"] for row in rows)


def test_the_files_of_every_suite_are_there() -> None:
    named = {file for suite in suites.SUITES.values() for file in suite.files}
    assert named == {path.name for path in suites.BENCHMARKS.glob("test_*.py")}
    for suite in suites.SUITES.values():
        assert set(suite.needs) <= suites._FIXES.keys()


CONFTEST = """
import csv, pytest

def pytest_addoption(parser):
    parser.addoption("--rows")
    parser.addoption("--figures")
    parser.addoption("--quick", action="store_true")

@pytest.fixture
def keep(request):
    def write(**row):
        with open(request.config.getoption("rows") or request.config.getoption("figures"), "w") as file:
            csv.writer(file).writerows([row, row.values()])
    return write
"""
ROWS = {
    "kernels": dict.fromkeys(COLUMNS.split(","), "1") | {"contestant": "product", "cache": "warm"},
    "figures": {"benchmark": "b", "case": "c", "seconds": "1", "hardware": "h", "threads": "1", "torch": "2"},
}
PASSES, FAILS = "def test(keep):\n    keep(**{row})\n", "def test(keep):\n    keep(**{row})\n    assert False\n"
SKIPPED = "import pytest\n@pytest.mark.skip(reason='the moon (full)')\ndef test(): pass\n"
SKIPPED_AS_A_WHOLE = "import pytest\npytest.importorskip('nonesuch')\ndef test(): pass\n"
MIXED = SKIPPED + "def test_other(keep):\n    keep(**{row})\n"


@pytest.fixture
def benchmarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Replaces the benchmarks by these, and returns a folder for what they write."""

    def write(**tests: str) -> Path:
        folder = tmp_path / "benchmarks"
        folder.mkdir()
        (folder / "conftest.py").write_text(CONFTEST)
        (folder / "pytest.ini").write_text("[pytest]\n")
        (folder / "test_kernels.py").touch()
        for name, text in tests.items():
            row = ROWS["kernels" if name == "kernels" else "figures"]
            (folder / f"test_{name}.py").write_text(text.format(row=row))
        monkeypatch.setattr(suites, "BENCHMARKS", folder)
        monkeypatch.setattr(suites, "SUITES", {name: suites.Suite((f"test_{name}.py",)) for name in tests})
        return tmp_path / "out"

    return write


def test_what_became_of_every_suite(
    benchmarks: Callable[..., Path], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that did not run is said to have, or leaves a file, also none of an earlier run."""
    out = benchmarks(
        kernels=PASSES, data=SKIPPED, step=FAILS, evaluate=SKIPPED_AS_A_WHOLE, mixed=MIXED, broken="1 / 0", bare="{{}}"
    )
    monkeypatch.setitem(suites.SUITES, "bare", suites.Suite(("test_bare.py",), ("nonesuch",)))
    monkeypatch.setitem(suites._FIXES, "nonesuch", "pip install nonesuch")
    out.mkdir()
    for name in suites.SUITES:
        for ending in (".csv", ".png", "_roofline.png"):
            (out / f"{name}{ending}").write_text("of an earlier run")
    main_code = exit_code("bench", "all", "--quick", "--out", out)
    printed, error = capfd.readouterr()
    states = {
        "kernels": "ran",
        "data": "skipped: the moon (full)",
        "step": "failed: the benchmarks failed (pytest's exit code is 1); its output is above",
        "evaluate": "skipped: could not import 'nonesuch': No module named 'nonesuch'",
        "mixed": "ran",
        "broken": "failed: the benchmarks failed (pytest's exit code is 2); its output is above",
        "bare": "skipped: this needs the package nonesuch: pip install nonesuch",
    }
    for number, (name, state) in enumerate(states.items(), start=1):
        assert f"[{number}/7] {name}, after 0:" in printed
        assert printed.count(f"\n{name}: {state}\n") == (1 if state == "ran" else 2)  # at once, and at the end
    assert main_code == 2 and error == "error: failed: step, broken; their output is above\n"
    left = {path.name for path in out.iterdir() if path.read_bytes() != b"of an earlier run"}
    assert left == {
        "kernels.csv",
        "kernels.png",
        "kernels_roofline.png",
        "mixed.csv",
        "mixed.png",
        "step.csv",
        "step.png",
    }
    assert {path.name for path in out.iterdir()} - left == {f"{name}_roofline.png" for name in states} - left


def test_suites_that_cannot_run_are_no_failure(
    benchmarks: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    out = benchmarks(kernels=PASSES, data=SKIPPED)
    assert suites.run_all(out, quick=True) == {"kernels": "ran", "data": "skipped: the moon (full)"}
    capfd.readouterr()
    assert exit_code("bench", "all", "--out", out) == 0
    assert "data: skipped: the moon (full)" in capfd.readouterr().out
    assert {path.name for path in out.iterdir()} == {"kernels.csv", "kernels.png", "kernels_roofline.png"}


def test_a_suite_that_was_skipped_says_so_and_leaves_no_plot(
    benchmarks: Callable[..., Path], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    benchmarks(kernels=PASSES, data=SKIPPED)
    (tmp_path / "plot.png").write_text("of an earlier run")
    assert exit_code("bench", "data", "--plot", tmp_path / "plot.png") == 0
    assert capfd.readouterr().out.endswith("data: skipped: the moon (full)\n")
    assert not (tmp_path / "plot.png").exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert "choose another folder" in _fail(capsys, "bench", "all", "--out", tmp_path / "file" / "out")


@pytest.mark.parametrize(
    ("name", "package", "fix"),
    [
        ("data", "skimage", "scikit-image"),
        ("evaluate", "skimage", "scikit-image"),
    ],
)
def test_what_a_suite_needs(name: str, package: str, fix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ECO_FAST_TESTDATA", raising=False)
    monkeypatch.setattr(suites, "_is_installed", lambda other: other != package)
    assert package in suites.why_not(name) and fix in suites.why_not(name)
    assert suites.why_not("kernels") == ""
    with pytest.raises(UserError, match=package):
        suites.bench_suite(name)


def test_photographs_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suites, "_is_installed", lambda package: package != "skimage")
    monkeypatch.setenv("ECO_FAST_TESTDATA", str(tmp_path))
    assert f"{tmp_path} has no train/" in suites.why_not("data")
    folder = tmp_path / "train" / "DIV2K_0901-1000_quarter"
    folder.mkdir(parents=True)
    (folder / "0901.png").touch()
    assert suites.why_not("data") == ""  # and scikit-image is not missed


def test_a_report_on_compiled_code_has_no_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "leave one of them out" in _fail(capsys, "bench", "kernels", "--offline", "--plot", tmp_path / "plot.png")
