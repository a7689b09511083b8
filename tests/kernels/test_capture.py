"""How `torch.compile` traces the launches: see `capture.py`, which runs in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


@pytest.mark.slow
def test_each_call_is_one_graph_that_writes_its_outputs_only() -> None:
    script = Path(__file__).with_name("capture.py")
    result = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads(result.stdout) == {
        "gather_patches": [["out"]],
        "gather_mix": [["out"]],
        "bicubic_downsample": [["scratch"], ["out"]],
        "downsample_mix": [["scratch"], ["out"]],
        "eco_l1_with_grad": [["grad", "partials"]],
    }
