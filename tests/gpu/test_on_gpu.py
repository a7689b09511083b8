"""What only a GPU can show: `pytest -m gpu`. `eco-fast doctor --gpu-proof` shows more.

Minutes, most of them for kernels that have to be compiled the first time, which needs a compiler for C.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from eco_fast.config import RunConfig, load_config
from eco_fast.models import build
from eco_fast.proof import kernels
from eco_fast.proof.training import SIMILAR, Training, loops_on, relative_distance, watch
from eco_fast.train import start
from eco_fast.train.machine import configure
from eco_fast.train.teacher import freeze
from eco_kernels.dispatch import forget_choices
from tests.train.test_switches import OPTIONS, flags

pytestmark = pytest.mark.gpu

DEVICE = "cuda"


@pytest.fixture(autouse=True)
def kernels_are_chosen_by_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ECO_KERNELS", raising=False)
    forget_choices()


def test_kernels() -> None:
    """Every specialisation against float64."""
    device = torch.device(DEVICE)
    kernels.kernels_must_run(device)
    evidence = kernels.parity(device)
    assert evidence.compared > 250
    assert not evidence.faults


@pytest.mark.parametrize("name", loops_on(DEVICE))
def test_20_steps_of_a_loop_without_a_wait(tmp_path: Path, name: str) -> None:
    assert not watch(Training(tmp_path, DEVICE), loops_on(DEVICE)[name])


def test_a_graph_and_single_launches(tmp_path: Path) -> None:
    runs = Training(tmp_path, DEVICE)
    assert relative_distance(runs.reference(), runs.weights(steps=0)) > SIMILAR  # it learns
    assert relative_distance(runs.weights({"run.graph": True}), runs.reference()) <= SIMILAR


@pytest.mark.usefixtures("repeatable")
@pytest.mark.parametrize(("graph", "allowed"), [(False, 1e-6), (True, SIMILAR)], ids=["launches", "graph"])
def test_a_resumed_run(photos: Path, tmp_path: Path, graph: bool, allowed: float) -> None:
    """From step 10 to 20, against 20 steps in one go."""
    before, straight, resumed = weights_of_a_resumed_run(photos, tmp_path / "run", DEVICE, run__graph=graph)
    assert load_config(tmp_path / "run" / "config.toml").run.graph == graph  # it is off where it cannot be
    assert relative_distance(before, straight) > SIMILAR  # something is learnt after the checkpoint
    assert relative_distance(resumed, straight) <= allowed


def weights_of_a_resumed_run(photos: Path, out: Path, device: str, **settings: object) -> list[Tensor]:
    """After 10 steps, after 20, and after the last 10 of these once more."""
    settings |= {"mode": "eco", "run__steps": 20, "run__checkpoint_every": 10, "run__compile": "off"}
    config = load_config("edsr-tiny", flags=flags(photos, out, run__device=device, **settings))
    torch.manual_seed(1)
    teacher = freeze(build("edsr-tiny", 2, **OPTIONS))
    start.train(config, teacher=teacher)
    middle, last = (out / "checkpoints" / f"step-{step:08d}" for step in (10, 20))
    found = [trained_weights(each) for each in (middle, last)]
    shutil.rmtree(last)
    start.train(load_config(out / "config.toml"), resume=True, teacher=teacher)
    return [*found, trained_weights(last)]


def trained_weights(checkpoint: Path) -> Tensor:
    """All weights as one vector, without the colour means: large numbers that no step changes."""
    found = load_file(checkpoint / "weights.safetensors").items()
    return torch.cat([weight.double().flatten() for name, weight in found if "_mean" not in name])


@pytest.fixture
def repeatable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """cuDNN's repeatable algorithms, which training does not ask for."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic

    def configured(run: RunConfig) -> None:
        configure(run)
        cudnn.benchmark, cudnn.deterministic = False, True

    monkeypatch.setattr(start, "configure", configured)
    yield
    cudnn.benchmark, cudnn.deterministic = before
