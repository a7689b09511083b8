"""What is optional: named when it is missing, by packages that exist, and without PyTorch in one line."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from textwrap import dedent

import pytest

from eco_fast.extras import EXTRAS, install, versions

ROOT = Path(__file__).parents[1]


def test_the_table_is_that_of_the_project_file() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    stated = {
        name: tuple(requirement.partition(";")[0] for requirement in requirements)
        for name, requirements in project["optional-dependencies"].items()
    }
    assert stated == {name: extra.requirements for name, extra in EXTRAS.items()}
    core = {re.split("[>=;]", requirement)[0] for requirement in project["dependencies"]}
    assert not core & {name for extra in EXTRAS for name in versions(extra)}


def test_advice_names_packages_that_exist() -> None:
    assert install("onnx") == "pip install onnx onnxscript onnxruntime"
    assert install("spandrel") == 'pip install "spandrel>=0.4.2,<0.5"'
    texts = [path for pattern in ("*.py", "*.md", "*.toml", "Makefile") for path in ROOT.rglob(pattern)]
    for file in texts:
        if ".venv" not in file.parts and file != Path(__file__):  # this project is in no package index
            assert "eco-fast[" not in file.read_text(encoding="utf-8"), file


COMMANDS = {
    "doctor": [],
    "train": ["edsr-tiny", "--train", "photos", "--out", "run"],
    "eval": ["a.safetensors", "--data", "photos"],
    "upscale": ["a.png", "--weights", "a.safetensors", "--out", "large"],
    "export": ["a.safetensors", "--format", "onnx"],
    "prepare": ["photos", "--scale", "2", "--out", "store"],
    "demo": ["--out", "demo"],
}


def test_without_a_package_every_command_says_so_in_one_line(tmp_path: Path) -> None:
    """By the name that pip knows it by."""
    code = f"""
        import sys
        sys.modules["torch"] = None  # what an import takes for a missing package
        from eco_fast.cli import main
        commands = {COMMANDS!r}
        for name, arguments in [*commands.items(), ("demo", commands["demo"])]:
            try:
                main([name, *arguments])
            except SystemExit as stop:
                print(name, stop.code, flush=True)
            if name == list(commands)[-1]:
                sys.modules["PIL"] = None  # which it asks for first
    """
    result = subprocess.run([sys.executable, "-c", dedent(code)], cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout.splitlines() == [f"{name} 2" for name in [*COMMANDS, "demo"]]
    *said, last = result.stderr.splitlines()
    assert said == ["error: PyTorch is not installed; pip install torch"] * len(COMMANDS)
    assert last == "error: Pillow is not installed; pip install pillow"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", list(EXTRAS))
def test_every_extra_knows_its_versions(name: str) -> None:
    assert all(version is None or version[0].isdigit() for version in versions(name).values())
