"""Runs the tests of the Triton kernels in Triton's interpreter, each file in a process of its own.

They call the public functions, which ECO_KERNELS=triton sends to the kernels.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted(Path(__file__).parent.glob("test_triton_*.py"))


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter is on already")
@pytest.mark.parametrize("selection", ["not full", pytest.param("full", marks=pytest.mark.full)])
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_in_the_interpreter(file: Path, selection: str) -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", selection, str(file)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "ECO_KERNELS": "triton"}
    root = Path(__file__).parents[2]
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
