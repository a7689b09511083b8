"""Which implementation is taken."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from eco_kernels import bicubic_downsample
from eco_kernels.dispatch import forget_choices, implementation, runs_kernels

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for variable in ("ECO_KERNELS", "TRITON_INTERPRET"):
        monkeypatch.delenv(variable, raising=False)
    forget_choices()
    yield
    forget_choices()


@pytest.mark.parametrize("choice", [None, "auto", "reference"])
def test_the_cpu_computes_with_pytorch(choice: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if choice is not None:
        monkeypatch.setenv("ECO_KERNELS", choice)
    assert implementation("eco_kernels.gather", CPU).__name__ == "eco_kernels.gather.cpu"


@pytest.mark.parametrize(
    ("choice", "capability", "kernels"),
    [("auto", (8, 0), True), ("auto", (12, 0), True), ("auto", (7, 5), False), ("reference", (9, 0), False)],
)
def test_gpus(choice: str, capability: tuple[int, int], kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("ECO_KERNELS", choice)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert runs_kernels(CUDA) == kernels
    expected = "eco_kernels.loss.kernel" if kernels else "eco_kernels.loss.cpu"
    assert implementation("eco_kernels.loss", CUDA).__name__ == expected


def test_unknown_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECO_KERNELS", "fast")
    with pytest.raises(ValueError, match="ECO_KERNELS is 'fast'"):
        bicubic_downsample(torch.zeros((1, 1, 4, 4)), 2)


def test_kernels_on_the_cpu_need_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECO_KERNELS", "triton")
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
        bicubic_downsample(torch.zeros((1, 1, 4, 4)), 2)


def test_kernels_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECO_KERNELS", "triton")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install triton"):
        runs_kernels(CPU)


def test_reference_imports_no_triton() -> None:
    code = (
        "import sys, torch, eco_kernels; eco_kernels.bicubic_downsample(torch.zeros(1, 1, 4, 4), 2);"
        "sys.exit(any(name.split('.')[0] == 'triton' for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
