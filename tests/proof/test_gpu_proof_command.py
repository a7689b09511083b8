"""`eco-fast doctor --gpu-proof` on a machine without a GPU: all that can be shown there, and no word about more."""

import csv
from pathlib import Path

import pytest
import torch

from eco_fast.cli import main

SHOWN_ANYWHERE = {
    "every specialisation has a call",
    "operations in plain PyTorch against float64",
    "kernels in Triton's interpreter against float64",
    "compiled code of the kernels: no spills",
    "training: two equal runs",
    "training: lanes on and off",
    "training: online teacher, lanes on and off",
    "training: default settings and fp32",
}


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")
def test_the_offline_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("triton")
    with pytest.raises(SystemExit) as end:
        main(["doctor", "--gpu-proof", "--out", str(tmp_path / "proof")])
    said = capsys.readouterr().out
    assert end.value.code == 0, said
    with (tmp_path / "proof" / "checks.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["status"] for row in rows if row["device"] == "cuda"} == {"not run"}
    status = {row["check"]: row["status"] for row in rows if row["device"] == "cpu"}
    assert {check for check, state in status.items() if state == "passed"} >= SHOWN_ANYWHERE
    assert all((int(row["compared"]) > 0) == (row["status"] == "passed") for row in rows)
    assert "nothing about a GPU is shown by this" in said
    page = (tmp_path / "proof" / "report.md").read_text()
    assert "No GPU took part" in page and torch.__version__ in page and "NVIDIA driver" in page
    with (tmp_path / "proof" / "compile_report.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 60  # ten kernels, six architectures
