"""The graphed update, with a stand-in for CUDA graphs: a capture runs nothing, a replay does what was captured."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from eco_fast.config import Config, load_config, parse_config
from eco_fast.display import Display
from eco_fast.models import build
from eco_fast.train import graph
from eco_fast.train.batches import Batch
from eco_fast.train.graph import Graphs, why_not
from eco_fast.train.inputs import load_inputs
from eco_fast.train.learner import Learner
from eco_fast.train.loop import Loop
from eco_fast.train.machine import resolve
from eco_fast.train.run_folder import RunFolder
from eco_fast.train.teacher import freeze
from eco_fast.train.update import GraphedUpdate, Update, make_update
from eco_fast.train.world import World

STEPS = 16
OPTIONS = {"blocks": 1, "channels": 4}


def config(**run: object) -> Config:
    document = {
        "student": {"name": "edsr-tiny", "options": OPTIONS},
        "optim": {"name": "lamb", "clip_norm": 5.0},
        "data": {"batch": 2},
        "run": {"steps": STEPS, "device": "cpu", "precision": "fp32", "compile": "off", "graph": True, **run},
    }
    return parse_config(document, "test")


class FakeCuda:
    """What `Graphs` uses of `torch.cuda`, on the CPU: a capture leaves all as it was, a replay computes again."""

    def __init__(self, learners: Callable[[], Sequence[Learner]] = tuple, refused: Sequence[str] = ()) -> None:
        self.learners, self.refused = learners, refused
        self.what = ""
        self.priorities: list[int] = []
        self.left: list[Any] = []  # what was closed after a capture that failed
        self.captures, self.replays, self.synchronized = 0, 0, 0

    def CUDAGraph(self) -> Any:
        return SimpleNamespace(replay=None)

    def Stream(self, priority: int) -> torch.cpu.Stream:
        self.priorities.append(priority)
        return torch.cpu.Stream()

    def current_stream(self) -> torch.cpu.Stream:
        return torch.cpu.current_stream()

    def stream(self, stream: Any) -> Any:
        return torch.cpu.stream(stream)

    def set_stream(self, stream: Any) -> None:
        self.left.append(stream)

    def current_device(self) -> int:
        return 0

    def _cuda_endAllocateToPool(self, device: int, pool: object) -> None:
        self.left.append("pool")

    def _cuda_releasePool(self, device: int, pool: object) -> None:
        self.left.append("release")

    def synchronize(self) -> None:
        self.synchronized += 1

    def graph_pool_handle(self) -> object:
        return object()

    @contextmanager
    def graph(self, made: Any, pool: object = None, *args: Any, capture_error_mode: str, **more: Any) -> Iterator[None]:
        """Run the body, and take back all that it did."""
        assert capture_error_mode == "thread_local"
        if pool is None:  # the one after a capture that failed
            self.left.append("capture")
            yield
            return
        students = self.learners()
        assert all(p.grad is None for student in students for p in student.parameters.read.parameters())
        before = [snapshot(student) for student in students]
        yield
        for student, values in zip(students, before, strict=True):
            restore(student, values)
        if self.what in self.refused:
            raise RuntimeError("operation not permitted when stream is capturing\nmore of it")
        self.captures += 1

    def replayed(self, graph: Any, work: Callable[..., Any], places: Any, results: Any) -> None:
        """What a replay of that graph does."""

        def replay() -> None:
            self.replays += 1
            for ours, theirs in zip(results, work(*places), strict=True):
                if ours is not None:
                    ours.copy_(theirs)

        graph.replay = replay


@contextmanager
def graphs_on(cuda: FakeCuda) -> Iterator[None]:
    """`Graphs` made here use the stand-in."""
    capture = Graphs._capture

    def captured(self: Graphs, slot: int, work: Callable[..., Any], inputs: Any) -> bool:
        cuda.what = self._what
        done = capture(self, slot, work, inputs)
        if done:
            made = self._captured[slot]
            cuda.replayed(made.graph, work, made.inputs, made.results)
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "torch", SimpleNamespace(cuda=cuda, _C=cuda, zeros=torch.zeros))
        patch.setattr(Tensor, "record_stream", lambda *_: None)
        patch.setattr(Graphs, "_capture", captured)
        yield


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


def updates() -> tuple[Update, Update]:
    """One to be graphed, one with plain numbers, of the same weights."""
    torch.manual_seed(0)
    student = build("edsr-tiny", 2, **OPTIONS)
    graphed, plain = config(), config(graph=False)
    return make_update(graphed, student), make_update(plain, copy.deepcopy(student))


def both(graphed: Update, plain: Update) -> None:
    """All batches by both, to the same results."""
    for step, batch in enumerate(batches()):
        results = []
        for update in (graphed, plain):
            update.schedule(step)
            results.append([t.clone() for t in update(batch)])
        assert all(torch.equal(a, b) or (a.isnan() and b.isnan()) for a, b in zip(*results, strict=True)), step


def test_replays_do_what_updates_do() -> None:
    """Rates, averages, a skipped step and three kinds of batches included, in two slots that take turns."""
    inner, plain = updates()
    cuda = FakeCuda(lambda: [inner.learners["student"]])
    with graphs_on(cuda):
        graphed = GraphedUpdate(inner, "cpu")
        both(graphed, plain)
    # Three updates of each kind come before its captures: of 5, 6 and 5.
    assert (cuda.captures, cuda.replays) == (graphed.graphs.captures, 2 + 3 + 2) == (2 + 2 + 2, 7)
    assert cuda.synchronized == 2
    ours, theirs = graphed.learners["student"], plain.learners["student"]
    for a, b in zip(tensors(ours), tensors(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)  # the rate is fp32 on one side
    assert ours.state.skipped == theirs.state.skipped == 1


def test_results_belong_to_the_slot() -> None:
    inner, _ = updates()
    with graphs_on(FakeCuda(lambda: [inner.learners["student"]])):
        graphed = GraphedUpdate(inner, "cpu")
        results = []
        for step in range(8):
            graphed.schedule(step)
            results.append(graphed(batches()[0]))
    assert results[4][0] is results[6][0] and results[5][0] is results[7][0]
    assert results[4][0] is not results[5][0]


def test_an_update_that_cannot_be_captured_goes_on() -> None:
    """With a line that says why, once, and to the results of single launches."""
    inner, plain = updates()
    said: list[str] = []
    cuda = FakeCuda(lambda: [inner.learners["student"]], ("this update",))
    with graphs_on(cuda):
        graphed = GraphedUpdate(inner, "cpu", said.append)
        both(graphed, plain)
    assert graphed.graphs.captures == 0
    assert cuda.left == [torch.cpu.current_stream(), "pool", "release", "capture"]
    assert len(said) == 1 and "this update (operation not permitted when stream is capturing)" in said[0]


@pytest.mark.parametrize("refused", [(), ("the making of a batch",)], ids=["all captured", "batches not"])
@pytest.mark.parametrize(
    ("source", "mode"), [("resident", "eco"), ("mapped", "alpha-sample"), ("files", "eco")], indirect=["source"]
)
def test_a_run_of_graphs_does_what_a_run_of_launches_does(
    photos: Path, tmp_path: Path, source: str, mode: str, refused: tuple[str, ...]
) -> None:
    """Through all phases of alpha, with centroids of every kind; also where batches cannot be captured."""
    weights = []
    for graphed in (False, True):
        flags = {
            "mode": mode,
            "student.options": OPTIONS,
            "data.train": [str(photos)],
            "data.store": str(tmp_path / "store"),
            "data.patch": 12,
            "data.batch": 2,
            "data.source": source,
            "data.patches_per_image": 2,
            "teacher.mode": "online" if source == "files" else "cached",
            "run.steps": 40,
            "run.log_every": 3,
            "run.device": "cpu",
            "run.precision": "fp32",
            "run.graph": graphed,
            "run.out": str(tmp_path / str(graphed)),
        }
        settings = resolve(load_config("edsr-tiny", flags=flags))
        display = Display(Console(quiet=True))
        torch.manual_seed(1)
        inputs = load_inputs(settings, freeze(build("edsr-tiny", 2, **OPTIONS)), display)
        update = make_update(settings, inputs.student)
        cuda = FakeCuda(lambda update=update: [update.learners["student"]], refused)
        folder = RunFolder(tmp_path / str(graphed), 1)
        folder.path.mkdir()
        with graphs_on(cuda):
            loop = Loop(settings, folder, inputs, update, display)
            for step in range(40):
                loop.advance(step)
            loop.close()
        # Phases of 11, 18 and 11 steps, two slots each.
        assert cuda.priorities == ([-1, 0] if graphed else [])  # the update before the next batch
        assert cuda.captures == graphed * (2 - len(refused)) * 3 * 2
        weights.append(loop.student.parameters.weights)
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-7)


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
