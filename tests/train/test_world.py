"""Two processes with half a batch each against one with the whole, and against parts one after the other."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eco_fast.config import parse_config
from eco_fast.errors import UserError
from eco_fast.train.batches import Batch
from eco_fast.train.update import make_update
from eco_fast.train.world import World, join_world, leave_world

STEPS, BATCH = 20, 8


class Double(nn.Module):
    """A student that computes in float64, so that only the last rounding of gradients can differ."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first, last = (
            lambda x, layer=layer: F.conv2d(x, layer.weight.double(), layer.bias.double(), padding=1)
            for layer in (self.first, self.last)
        )
        return F.pixel_shuffle(last(first(x.double()).relu()), 2)


def batch(step: int) -> Batch:
    """The global batch of a step; one in which the last sample is NaN."""
    generator = torch.Generator().manual_seed(step)
    x = torch.rand((BATCH, 3, 6, 6), generator=generator)
    if step == 7:
        x[-1] = torch.nan
    hr, centroid = torch.randint(0, 256, (2, BATCH, 3, 12, 12), generator=generator, dtype=torch.uint8)
    return Batch(x, hr, centroid, torch.rand(BATCH, generator=generator))


def train(world: World, accumulate: int = 1) -> dict[str, Tensor]:
    """Weights after some steps, and how many were skipped."""
    document = {
        "data": {"batch": BATCH},
        "optim": {"accumulate": accumulate, "clip_norm": 50.0},
        "run": {"steps": STEPS, "device": "cpu", "precision": "fp32", "compile": "off"},
    }
    update = make_update(parse_config(document, "test"), Double(), world)
    for step in range(STEPS):
        whole = batch(step)
        update.schedule(step)
        update(list(whole.parts(world.size))[world.rank])
    student = update.learners["student"]
    return {**student.network.state_dict(), "skipped": student.state.skipped}


def relative(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    ours_flat, theirs_flat = (torch.cat([t.double().flatten() for t in w.values()]) for w in (ours, theirs))
    return float((ours_flat - theirs_flat).norm() / theirs_flat.norm())


def test_parts_one_after_the_other() -> None:
    whole = train(World())
    assert whole["skipped"] == 1
    assert relative(train(World(), accumulate=2), whole) < 1e-6


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """The skipped step, which only one of them sees, included."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), str(root / "kernels")])
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path / f"{rank}.pt")],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": paths},
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    whole = train(World())
    assert all(torch.equal(first[name], second[name]) for name in whole)
    assert first["skipped"] == whole["skipped"] == 1
    assert relative(first, whole) < 1e-6


def test_a_batch_that_cannot_be_split() -> None:
    config = {"data": {"batch": 6}, "optim": {"accumulate": 4}, "run": {"device": "cpu", "compile": "off"}}
    with pytest.raises(UserError, match=r"optim\.accumulate=4"):
        make_update(parse_config(config, "test"), Double())


def test_a_process_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert join_world() == World(0, 1)


if __name__ == "__main__":
    torch.save(train(join_world()), sys.argv[1])
    leave_world()
