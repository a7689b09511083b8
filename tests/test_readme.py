"""The README's commands, run as they are written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def commands(section: str) -> list[str]:
    """The indented lines of a section that are commands; comments behind them are the shell's own."""
    text = README.read_text(encoding="utf-8").partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    return [line for line in lines if line.startswith(("eco-fast ", "torchrun ", "photos="))]


def test_commands_are_found() -> None:
    found = commands("First command") + commands("Commands")
    assert len(found) > 15
    for name in ("train", "eval", "upscale", "export", "compare", "prepare", "data", "bench", "doctor"):
        assert any(line.startswith(f"eco-fast {name}") for line in found), name


@pytest.mark.full
def test_commands_run_as_written(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = "\n".join(["set -e", *commands("First command"), *commands("Commands")])
    result = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    made = {str(file.relative_to(tmp_path / "runs")) for file in (tmp_path / "runs").rglob("*") if file.is_file()}
    assert {"compare.png", "scores.json", "images.csv", "eco.safetensors", "sheet.png", "kernels.png"} <= made
    assert {"demo/curves.png", "gpu-proof/report.md", "large/chelsea_x2.png", "store/index.json"} <= made
