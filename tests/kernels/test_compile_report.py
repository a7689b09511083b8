"""The report on compiled code: its rows, and the arithmetic behind them."""

import csv
import os
from pathlib import Path

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels cannot be compiled", allow_module_level=True)

import compile_report
from compile_report import CARDS, COLUMNS, occupancy
from rich.console import Console


@pytest.mark.parametrize(
    ("arch", "registers", "shared", "warps", "expected"),
    [
        (90, 32, 0, 4, 1.0),
        (90, 128, 0, 4, 0.25),  # 16 warps of 4096 registers
        (90, 33, 0, 4, 0.75),  # 40 registers are allocated: 51 warps, 12 blocks of 4
        (86, 32, 0, 1, 16 / 48),  # no more than 16 blocks
        (80, 32, 40 << 10, 4, 4 * 4 / 64),  # 41 KB of 164 KB
    ],
)
def test_occupancy(arch: int, registers: int, shared: int, warps: int, expected: float) -> None:
    assert occupancy(CARDS[arch], registers, shared, warps) == pytest.approx(expected)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_table_fits_the_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compile_report, "plain_console", lambda: Console(width=width))
    with (Path(compile_report.__file__).parent / "results" / "compile_report.csv").open(newline="") as file:
        rows = [{**row, "occupancy": float(row["occupancy"])} for row in csv.DictReader(file)]
    compile_report._print(rows)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= width
    words = {word for row in rows for word in (*row["specialisation"].split("-"), row["arch"])}
    assert words <= set(text.split())


@pytest.mark.slow
def test_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(compile_report, "DEFAULTS", {"l1-bfloat16-uint8-uint8"})
    monkeypatch.setattr(compile_report, "ARCHITECTURES", (80, 90))
    compile_report.main(tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["arch"] for row in rows] == ["sm_80", "sm_90"]
    assert tuple(rows[0]) == COLUMNS
    for row in rows:
        # Two bytes of sr and of its gradient, one of hr and of centroid.
        assert int(row["bytes"]) == 16 * 3 * 192 * 192 * 6
        assert float(row["floor_us"]) == pytest.approx(
            int(row["bytes"]) / CARDS[int(row["arch"][3:])].gb_per_s / 1e3, abs=0.01
        )
        assert (row["ldg128"], row["stg128"], row["spill_bytes"]) == ("4", "2", "0")
    assert "l1 bfloat16 uint8 uint8" in capsys.readouterr().out
