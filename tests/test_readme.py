"""The README's commands, and its lines of Python, run as they are written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
SECTIONS = ("Demo", "Train on your images", "Upscale your photographs", "Export")


def block(section: str) -> list[str]:
    """The indented lines of a section."""
    text = README.read_text(encoding="utf-8").partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return [line[4:] for line in text.splitlines() if line.startswith("    ")]


def commands() -> list[str]:
    """The lines that are commands, in their order; comments behind them are the shell's own."""
    lines = [line for section in SECTIONS for line in block(section)]
    return [line for line in lines if line.startswith(("eco-fast ", "photos="))]


def test_commands_are_found() -> None:
    found = commands()
    for name in ("demo", "train", "eval", "upscale", "export", "compare", "prepare", "data", "recipes"):
        assert any(line.startswith(f"eco-fast {name}") for line in found), name
    assert block("From Python")


def test_pictures_are_there() -> None:
    text = README.read_text(encoding="utf-8")
    for picture in ("docs/coffee.png", "docs/curves.png"):
        assert f"]({picture})" in text.partition("\n## ")[0], "on the first screen"
        assert (README.parent / picture).is_file()


@pytest.mark.full
def test_commands_run_as_written(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    python = ["import numpy as np", "lr = np.zeros((20, 30, 3), np.uint8)", *block("From Python")]
    python += ["assert sr.shape == (40, 60, 3)"]
    script = "\n".join(["set -e", *commands(), "python - <<'END'", *python, "END"])
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
    assert {"compare.png", "eco.safetensors", "sheet.png", "demo/curves.png", "store/index.json"} <= made
    assert "large/chelsea_x2.png" in made
