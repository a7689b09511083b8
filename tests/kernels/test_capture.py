"""How `torch.compile` traces the launches: see `capture.py`, which runs in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("triton")

import triton.language as tl
from triton.runtime.jit import KernelInterface

from tests.kernels.capture import calls


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
        "eco_loss_with_grad": [["grad", "partials"]],
        "linear_tail": [["picture"]],
        "linear_tail_backward": [["of_features"], ["bias_partials", "partials"], ["of_biases", "of_kernels"]],
    }


def test_no_launch_is_given_an_object_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamo of PyTorch 2.11 refuses a `tl.constexpr` that later ones take for its number."""
    given: list[object] = []

    def launcher(kernel: object, grid: object) -> Callable[..., None]:
        return lambda *args, **kwargs: given.extend([*args, *kwargs.values()])

    monkeypatch.setattr(KernelInterface, "__getitem__", launcher)
    for function, args in calls().values():
        function(*args)
    assert len(given) > 100
    assert not [each for each in given if isinstance(each, tl.constexpr)]
