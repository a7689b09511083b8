"""Which implementation is taken."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from eco_kernels import bicubic_downsample, dispatch
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
    monkeypatch.setattr(dispatch, "_load_driver", lambda: None)
    assert runs_kernels(CUDA) == kernels
    expected = "eco_kernels.loss.kernel" if kernels else "eco_kernels.loss.cpu"
    assert implementation("eco_kernels.loss", CUDA).__name__ == expected


@pytest.fixture
def without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As on a machine with a GPU, where Triton's cache is empty and nothing is on the path; the path."""
    driver = pytest.importorskip("triton.backends.nvidia.driver")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(driver.CudaDriver, "is_active", lambda: True)
    monkeypatch.setattr(driver, "library_dirs", list)
    monkeypatch.delattr(driver.CudaUtils, "instance", raising=False)
    from triton.runtime import driver as drivers

    for name in ("_default", "_active"):
        monkeypatch.setattr(drivers, name, None)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_gpus_without_a_compiler(without_a_compiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mend = r"; install gcc and Python's headers \(python3-dev\), or set ECO_KERNELS=reference$"
    with pytest.raises(ValueError, match=r"its launcher \(Failed to find C compiler\)" + mend):
        runs_kernels(CUDA)
    gcc = without_a_compiler / "gcc"
    gcc.write_text("#!/bin/sh\nexit 1\n")  # as where Python's headers are missing
    gcc.chmod(0o755)
    with pytest.raises(ValueError, match=rf"its launcher \({gcc} failed\)" + mend):
        runs_kernels(CUDA)
    monkeypatch.setenv("ECO_KERNELS", "reference")
    assert not runs_kernels(CUDA)


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
