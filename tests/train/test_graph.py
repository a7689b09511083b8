"""The graphed update, with a stand-in for CUDA graphs: a capture runs nothing, a replay does what was captured."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from eco_fast.config import Config, parse_config
from eco_fast.models import build
from eco_fast.train.batches import Batch
from eco_fast.train.graph import Graphed, why_not
from eco_fast.train.learner import Learner
from eco_fast.train.update import Update, make_update
from eco_fast.train.world import World

STEPS = 16
OPTIONS = {"blocks": 1, "channels": 4}


def config(**run: object) -> Config:
    document = {
        "student": {"name": "edsr-tiny", "options": OPTIONS},
        "optim": {"clip_norm": 5.0},
        "data": {"batch": 2},
        "run": {"steps": STEPS, "device": "cpu", "precision": "fp32", "compile": "off", "graph": True, **run},
    }
    return parse_config(document, "test")


class Watched:
    """An update that remembers its calls."""

    def __init__(self, update: Update) -> None:
        self.learners, self.times, self.schedule = update.learners, update.times, update.schedule
        self.inner = update
        self.seen: list[tuple[Batch, tuple[Tensor, Tensor]]] = []

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        self.seen.append((batch, self.inner(batch)))
        return self.seen[-1][1]


class FakeCuda:
    """What `Graphed` uses of `torch.cuda`, on the CPU."""

    def __init__(self, update: Watched) -> None:
        self.update, self.student = update, update.learners["student"]
        self.captures, self.replays = 0, 0
        self.CUDAGraph = lambda: SimpleNamespace(replay=None)

    def Stream(self, priority: int) -> torch.cpu.Stream:
        assert priority < 0  # before the lane of the teacher
        return torch.cpu.Stream()

    def current_stream(self) -> torch.cpu.Stream:
        return torch.cpu.current_stream()

    def stream(self, stream: Any) -> Any:
        return torch.cpu.stream(stream)

    def synchronize(self) -> None: ...

    @contextmanager
    def graph(self, graph: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
        """Run the body, take back all that it did, and run it again in every replay."""
        assert capture_error_mode == "thread_local"
        assert all(p.grad is None for p in self.student.parameters.read.parameters())
        before = snapshot(self.student)
        self.update.seen.clear()
        yield
        restore(self.student, before)
        [(static, result)] = self.update.seen
        graph.replay = self.replay(static, result)
        self.captures += 1

    def replay(self, static: Batch, result: tuple[Tensor, Tensor]) -> Callable[[], None]:
        def run() -> None:
            self.replays += 1
            for ours, theirs in zip(result, self.update.inner(static), strict=True):
                ours.copy_(theirs)

        return run


def tensors(student: Learner) -> list[Tensor]:
    parameters, state = student.parameters, student.state
    kept = student.optimizer.state_dict()["state"].values()
    moments = [t for each in kept for t in each.values() if isinstance(t, Tensor)]
    averages = [] if parameters.average is None else [parameters.average]
    return [parameters.weights, *averages, *moments, state.last, state.skipped, state.in_a_row, state.window]


def snapshot(student: Learner) -> list[Tensor]:
    return [t.detach().clone() for t in tensors(student)]


@torch.no_grad()
def restore(student: Learner, before: list[Tensor]) -> None:
    for tensor, value in zip(tensors(student), before, strict=True):
        tensor.copy_(value)


def batches() -> list[Batch]:
    """As over a schedule: the centroid alone, both, HR alone; one of them broken."""
    rng = np.random.default_rng(3)
    made = []
    for step in range(STEPS):
        x = torch.from_numpy(rng.random((2, 3, 6, 6), dtype=np.float32))
        hr, centroid = (torch.from_numpy(rng.integers(0, 256, (2, 3, 12, 12), dtype=np.uint8)) for _ in range(2))
        if step == 9:
            x[0] = torch.nan
        alpha = torch.tensor(0.0 if step < 5 else step / STEPS if step < 11 else 1.0)
        made.append(Batch(x, None if step < 5 else hr, None if step >= 11 else centroid, alpha))
    return made


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> tuple[Watched, Update]:
    """One to be graphed, one with plain numbers, of the same weights."""
    monkeypatch.setattr(Tensor, "record_stream", lambda *_: None)
    torch.manual_seed(0)
    student = build("edsr-tiny", 2, **OPTIONS)
    # Off a GPU there is no capturable Adam; LAMB reads a tensor as its rate anywhere.
    document = config().model_dump() | {"optim": {"name": "lamb", "clip_norm": 5.0}}
    graphed = parse_config(document, "test")
    plain = parse_config({**document, "run": {**document["run"], "graph": False}}, "test")
    return Watched(make_update(graphed, student)), make_update(plain, copy.deepcopy(student))


def test_replays_do_what_updates_do(updates: tuple[Watched, Update]) -> None:
    """Rates, averages, a skipped step and three kinds of batches included."""
    inner, plain = updates
    cuda = FakeCuda(inner)
    graphed = Graphed(inner, cuda)
    for step, batch in enumerate(batches()):
        results = []
        for update in (graphed, plain):
            update.schedule(step)
            results.append([t.clone() for t in update(batch)])
        assert all(torch.equal(a, b) or (a.isnan() and b.isnan()) for a, b in zip(*results, strict=True)), step
    assert (cuda.captures, cuda.replays) == (3, 2 + 3 + 2)  # three updates of each kind come before its capture
    ours, theirs = graphed.learners["student"], plain.learners["student"]
    for a, b in zip(tensors(ours), tensors(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)  # the rate is fp32 on one side
    assert ours.state.skipped == theirs.state.skipped == 1


def test_results_belong_to_the_graph(updates: tuple[Watched, Update]) -> None:
    inner = updates[0]
    graphed = Graphed(inner, FakeCuda(inner))
    graphed.schedule(0)
    results = [graphed(batches()[0]) for _ in range(6)]
    assert results[4][0] is results[5][0]


def test_an_update_that_cannot_be_captured_goes_on(updates: tuple[Watched, Update]) -> None:
    """With a line that says why, once, and to the results of single launches."""
    inner, plain = updates
    said: list[str] = []

    class Refusing(FakeCuda):
        @contextmanager
        def graph(self, graph: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
            before = snapshot(self.student)
            yield
            restore(self.student, before)
            raise RuntimeError("operation not permitted when stream is capturing\nmore of it")

    graphed = Graphed(inner, Refusing(inner), say=said.append)
    for step, batch in enumerate(batches()):
        results = []
        for update in (graphed, plain):
            update.schedule(step)
            results.append([t.clone() for t in update(batch)])
        assert all(torch.equal(a, b) or (a.isnan() and b.isnan()) for a, b in zip(*results, strict=True)), step
    assert graphed.graph is None
    assert len(said) == 1 and "not permitted when stream is capturing)" in said[0]


@pytest.mark.parametrize(
    ("changes", "world", "reason"),
    [
        ({"device": "cpu"}, World(), "CUDA"),
        ({"device": "cuda"}, World(0, 2), "one process"),
        ({"device": "cuda"}, World(), None),
    ],
)
def test_what_stands_against_it(changes: dict[str, object], world: World, reason: str | None) -> None:
    found = why_not(config(**changes), world)
    assert (found is None) == (reason is None) and (reason or "") in (found or "")


def test_an_optimiser_that_asks_the_host() -> None:
    document = {"optim": {"name": "sgd"}, "run": {"device": "cuda"}}
    assert "sgd" in str(why_not(parse_config(document, "test"), World()))
