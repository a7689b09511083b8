"""`eco-fast bench kernels`: the table, the rows, and one line where something is missing."""

import csv
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from eco_fast import bench
from eco_fast.cli import main
from eco_fast.errors import UserError

COLUMNS = (
    "operation,case,contestant,cache,device,threads,torch,triton,p20_us,p50_us,p80_us,bytes,gb_per_s,percent_of_copy,"
    "launches,ratio"
)
OPERATIONS = ["gather_patches", "gather_mix", "bicubic_downsample", "downsample_mix", "eco_l1_with_grad"]


def _fail(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must end with one line on stderr; returns the line."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


@pytest.mark.slow
def test_a_quick_run_prints_a_table_and_writes_rows(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.csv"
    with pytest.raises(SystemExit) as stop:
        main(["bench", "kernels", "--quick", "--csv", str(file), "--plot", str(tmp_path / "plot.png")])
    printed = capfd.readouterr().out
    assert stop.value.code == 0, printed
    with file.open(newline="") as opened:
        reader = csv.DictReader(opened)
        rows = list(reader)
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
    assert bytes_of["eco_l1_with_grad", "bfloat16"] == 2 * 3 * 24 * 24 * (2 + 1 + 1 + 2) + 4


def test_offline_calls_the_compile_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    report = ModuleType("compile_report")
    monkeypatch.setattr(report, "main", called.append, raising=False)
    monkeypatch.setitem(sys.modules, "compile_report", report)
    monkeypatch.setattr(sys, "path", list(sys.path))
    bench.report_kernels(tmp_path / "report.csv")
    assert called == [tmp_path / "report.csv"]


def test_without_the_source_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "BENCHMARKS", tmp_path / "benchmarks")
    for option in ([], ["--offline"]):
        assert "benchmarks need the source tree" in _fail(capsys, "bench", "kernels", *option)


@pytest.mark.parametrize("package", ["pytest", "pytest_benchmark"])
def test_without_the_development_packages(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    assert f'{package}: pip install "eco-fast[dev]"' in _fail(capsys, "bench", "kernels")


def test_rows_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (tmp_path, tmp_path / "missing" / "rows.csv"):
        for option in ([], ["--offline"]):
            assert f"cannot write {file}" in _fail(capsys, "bench", "kernels", "--csv", file, *option)


def test_failed_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="exit code is 1"):
        bench.bench_suite("kernels", quick=True)


@pytest.mark.slow
def test_another_suite(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("skimage")
    file = tmp_path / "rows.csv"
    with pytest.raises(SystemExit) as stop:
        main(["bench", "evaluate", "--quick", "--csv", str(file), "--plot", str(tmp_path / "plot.png")])
    printed = capfd.readouterr().out
    assert stop.value.code == 0, printed
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert {row["benchmark"] for row in rows} == {"evaluate"} and len(rows) == 4
    assert (tmp_path / "plot.png").stat().st_size > 1000
    assert all(row["case"] in printed and row["hardware"] and row["torch"] for row in rows)


def test_the_files_of_every_suite_are_there() -> None:
    named = {file for files in bench.SUITES.values() for file in files}
    assert named == {path.name for path in bench.BENCHMARKS.glob("test_*.py")}


def test_what_became_of_every_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One has rows, one has none, the others fail: none of those that did not run is said to have."""

    def suite(name: str, csv_file: Path, plot: Path, *, quick: bool) -> int:
        if name in ("kernels", "data"):
            return 3 if name == "kernels" else 0
        raise UserError("the benchmarks failed")

    monkeypatch.setattr(bench, "bench_suite", suite)
    states = bench.run_all(tmp_path / "out", quick=True)
    assert list(states) == list(bench.SUITES)
    assert states["kernels"] == "ran"
    assert states["data"].startswith("skipped: ")
    assert states["step"] == "failed: the benchmarks failed"
    with pytest.raises(UserError, match="failed: step, evaluate"):
        bench.bench_all(tmp_path / "out")


def test_a_suite_without_rows_leaves_no_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_command", lambda *_: [sys.executable, "-c", "pass"])
    assert bench.bench_suite("data", tmp_path / "rows.csv", tmp_path / "plot.png") == 0
    assert not (tmp_path / "plot.png").exists()
