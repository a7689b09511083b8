"""What pytest-benchmark writes is what the tables say."""

import csv
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]

pytest.importorskip("skimage")


def benchmarked(tmp_path: Path, option: str, *choice: str) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Entries of the JSON and rows of the CSV of a quick run."""
    made, rows = tmp_path / "entries.json", tmp_path / "rows.csv"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--benchmark-only", "--quick", *choice]
    command += [f"--benchmark-json={made}", option, str(rows), "--benchmark-save-data"]
    subprocess.run(command, cwd=ROOT / "benchmarks", check=True, capture_output=True, text=True)
    with rows.open(newline="", encoding="utf-8") as file:
        return json.loads(made.read_text("utf-8"))["benchmarks"], list(csv.DictReader(file))


def as_text(value: object) -> str:
    return "" if value is None else str(float(f"{value:.4g}") if isinstance(value, float) else value)


@pytest.mark.slow
def test_operations(tmp_path: Path) -> None:
    """An entry per contestant and state of the cache, with every call that was timed."""
    entries, rows = benchmarked(tmp_path, "--rows", "test_kernels.py", "-k", "gather_patches")
    assert len(entries) == len(rows) > 2
    for entry, row in zip(entries, rows, strict=True):
        assert entry["name"].endswith(f"[{row['case']}, {row['contestant']}, {row['cache']}]")
        assert entry["group"] == row["operation"]
        assert float(row["p50_us"]) == pytest.approx(1e6 * entry["stats"]["median"], rel=1e-3)
        assert {key: as_text(entry["extra_info"][key]) for key in row} == row
        assert entry["extra_info"]["floor_us"] > 0
        assert entry["stats"]["rounds"] == len(entry["stats"]["data"]) >= 2
        assert entry["stats"]["median"] == pytest.approx(statistics.median(entry["stats"]["data"]))


@pytest.mark.slow
def test_other_figures(tmp_path: Path) -> None:
    entries, rows = benchmarked(tmp_path, "--figures", "test_evaluate.py")
    assert len(entries) == len(rows) == 4
    for entry, row in zip(entries, rows, strict=True):
        about = {key: "" if value is None else str(value) for key, value in entry["extra_info"].items()}
        assert {key: about.get(key, "") for key in row} == row  # other benchmarks have other columns
        assert float(row["seconds"]) == pytest.approx(entry["stats"]["median"], abs=1e-3)


@pytest.mark.slow
def test_a_benchmark_needs_the_clock_of_the_recording(tmp_path: Path) -> None:
    test = tmp_path / "test_without.py"
    test.write_text("def test(record):\n    record('case', [1.0])\n", encoding="utf-8")
    (tmp_path / "conftest.py").write_text(
        f"import sys\nsys.path.append({str(ROOT / 'benchmarks')!r})\nfrom conftest_of_benchmarks import *\n", "utf-8"
    )
    (tmp_path / "conftest_of_benchmarks.py").write_text(
        (ROOT / "benchmarks" / "conftest.py").read_text("utf-8"), "utf-8"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test), f"--rootdir={tmp_path}"]
    result = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert result.returncode == 1 and "lacks the mark pytest.mark.benchmark(timer=recorded.clock)" in result.stdout
