"""What a run reads over a whole schedule: no HR while alpha is 0, no teacher once it is 1."""

import gc
import weakref
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

from eco_fast.config import Config, load_config, parse_config
from eco_fast.data.flat import TrainingSet
from eco_fast.data.sampler import Sampler
from eco_fast.data.source import Resident
from eco_fast.display import Display, Part
from eco_fast.eco.objective import MODES
from eco_fast.models import build
from eco_fast.train.batches import Batch, Batches, BatchMaker, Phases
from eco_fast.train.inputs import Images, Inputs, load_images
from eco_fast.train.lane import Lane
from eco_fast.train.loop import Loop
from eco_fast.train.machine import resolve
from eco_fast.train.online import OnlineTeacher
from eco_fast.train.speed import StepTimes
from eco_fast.train.start import train
from eco_fast.train.teacher import freeze
from eco_fast.train.world import World
from tests.sets import training_set
from tests.train.test_online import Nearest, cached

STEPS = 100


class Counting(nn.Module):
    """A teacher that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls = Nearest(2), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(x)


def config(mode: str = "eco", alpha: dict[str, object] | None = None, **run: object) -> Config:
    data = {"patch": 10, "batch": 4}
    run = {"steps": STEPS, **run}
    return parse_config({"mode": mode, "scale": 2, "data": data, "alpha": alpha or {}, "run": run}, "test")


def maker(settings: Config, online: bool) -> tuple[BatchMaker, Counting]:
    images = training_set(2, ((16, 19), (23, 16)))
    teacher = freeze(Counting())
    stored = images if online else cached(images, teacher)
    teacher.calls = 0
    sampler = Sampler(images.heights, images.widths, 2, 10, 4, seed=0, context=2)
    phases = Phases(settings)

    def fetched(step: int) -> tuple[str, ...]:
        return ("window", "hr") if online and phases.reads_teacher(step) else phases.reads(step)

    source = Resident(stored, sampler.on("cpu"), fetched, 10, context=2)
    weights = phases.weights(sampler, "cpu")
    return BatchMaker(phases, source, weights, OnlineTeacher(teacher) if online else None), teacher


@pytest.mark.parametrize("online", [True, False])
def test_official_schedule(online: bool) -> None:
    """alpha is 0 for t < 0.2602 and 1 for t > 0.7398: 27 and 26 of 100 steps."""
    make, teacher = maker(config(), online)
    for step in range(STEPS):
        alpha, batch = Phases(config()).alpha(step), make(step)
        assert (batch.hr is None) == (alpha == 0)
        assert (batch.centroid is None) == (alpha == 1)
    assert make.made["hr"] == 100 - 27
    assert make.made["centroid"] == 100 - 26
    assert make.made["teacher"] == teacher.calls == (74 if online else 0)
    assert Phases(config()).last_of_teacher == 73


ALPHAS: list[dict[str, object]] = [
    {"schedule": "official"},
    *({"schedule": "official", "shift": shift} for shift in (-700.0, -6.0, -1.5, 0.3, 2.5, 6.0, 100.0)),
    *({"schedule": name, "end": end} for name in ("linear", "cosine") for end in (1e-9, 0.3, 1 / 3, 0.7, 1.0)),
    *({"schedule": "constant", "value": value} for value in (0.0, 0.5, 1.0)),
]


@pytest.mark.parametrize("alpha", ALPHAS, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_last_step_of_the_teacher(mode: str, alpha: dict[str, object]) -> None:
    """The same as a walk over all steps finds, for a million of them by a few looks."""
    for steps in (1, 2, 3, 100, 101):
        phases = Phases(config(mode, alpha, steps=steps))
        assert phases.last_of_teacher == max(filter(phases.reads_teacher, range(steps)), default=-1)
    phases = Phases(config(mode, alpha, steps=1_000_000))
    with patch.object(phases, "reads_teacher", wraps=phases.reads_teacher) as looks:
        last = phases.last_of_teacher
    assert looks.call_count <= 25
    near = range(max(last - 50, 0), min(last + 51, 1_000_000))
    assert all(phases.reads_teacher(step) == (step <= last) for step in near)


@pytest.mark.parametrize("alpha", ALPHAS, ids=str)
def test_alpha_never_falls(alpha: dict[str, object]) -> None:
    phases = Phases(config("eco", alpha, steps=20_000))
    assert all(before <= after for before, after in pairwise(map(phases.alpha, range(20_000))))


@pytest.mark.parametrize("online", [True, False])
def test_a_freed_teacher_changes_no_bit(online: bool) -> None:
    kept, _ = maker(config(), online)
    freed, _ = maker(config(), online)
    freed.free_teacher()
    assert torch.equal(kept(80).x, freed(80).x)


@pytest.mark.parametrize("teacher_mode", ["cached", "online"])
def test_a_run_asks_the_teacher_while_alpha_is_below_1_and_lanes_change_no_bit(
    photos: Path, tmp_path: Path, teacher_mode: str
) -> None:
    weights = []
    for lanes in (True, False):
        teacher = freeze(Counting())
        settings = {
            "scale": 2,
            "student": {"name": "edsr-tiny", "options": {"blocks": 1, "channels": 8}},
            "data": {"train": [str(photos)], "patch": 12, "batch": 4, "store": str(tmp_path / "store")},
            "teacher": {"mode": teacher_mode},
            "run": {"steps": 20, "out": str(tmp_path / str(lanes)), "lanes": lanes, "threads": 1, "precision": "fp32"},
        }
        result = train(parse_config(settings, "test"), teacher=teacher)
        if teacher_mode == "online":
            assert teacher.calls == 15
        weights.append(load_file(result.checkpoint / "weights.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_lane_makes_each_batch_once() -> None:
    make, teacher = maker(config(), online=True)
    lane = Lane(make, torch.cpu)
    for step in range(10):
        lane.take(step)
        lane.begin(step + 1)
        lane.done(step)
    assert teacher.calls == 11


@pytest.mark.parametrize("source", ["resident", "mapped", "files"], indirect=True)
def test_processes_share_what_an_online_teacher_makes(photos: Path, tmp_path: Path, source: str) -> None:
    """From every source the batches of one process with resident images, in as many parts as there are processes."""
    teacher = freeze(build("edsr-tiny", 2, blocks=1, channels=8))

    def batches(source: str, world: World) -> Batches:
        flags = {
            "mode": "eco",
            "data.train": [str(photos)],
            "data.store": str(tmp_path / "store"),
            "data.patch": 12,
            "data.batch": 8,
            "data.source": source,
            "data.patches_per_image": 4,
            "teacher.mode": "online",
            "teacher.context": 3,
            "run.steps": STEPS,
            "run.device": "cpu",
        }
        settings = resolve(load_config("edsr-tiny", flags=flags))
        images = load_images(settings, None, Display(Console(quiet=True)))
        return Batches(settings, Inputs(settings, images, [], nn.Identity(), teacher), world, StepTimes("cpu"))

    whole = batches("resident", World())
    for size in (1, 2, 4):
        shares = [batches(source, World(rank, size)) for rank in range(size)]
        for step in (0, 1, 40, 41, 80, 81):
            expected = whole.maker(step)
            for name, part in zip(
                Batch._fields, zip(*(share.maker(step) for share in shares), strict=True), strict=True
            ):
                wanted = getattr(expected, name)
                if wanted is None or wanted.ndim == 0:
                    assert all(piece is None or torch.equal(piece, wanted) for piece in part)
                else:
                    assert torch.equal(torch.cat(part), wanted), (size, step, name)
        for share in shares:
            share.close()
    whole.close()


@pytest.mark.parametrize("teacher_mode", ["cached", "online"])
def test_the_teacher_is_let_go(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher_mode: str
) -> None:
    """Once alpha is 1 nothing holds the centroids any more, or what makes them; and after the run nothing the images,
    which a GPU's memory has no room for twice."""
    of_teacher: list[weakref.ref[Any]] = []
    held: list[weakref.ref[Tensor]] = []
    alive: list[bool] = []
    advance = Loop.advance

    def load(*arguments: Any, **more: Any) -> Images:
        images = load_images(*arguments, **more)
        assert isinstance(images, TrainingSet)
        held.append(weakref.ref(images.hr.data))
        if images.centroid is not None:
            of_teacher.append(weakref.ref(images.centroid.data))
        return images

    def look(loop: Loop, step: int) -> list[Part] | None:
        if step == 0 and (online := loop.batches.maker._teacher) is not None:
            of_teacher.append(weakref.ref(online))
        line = advance(loop, step)
        alive.append(of_teacher[0]() is not None)
        return line

    monkeypatch.setattr("eco_fast.train.inputs.load_images", load)
    monkeypatch.setattr(Loop, "advance", look)
    settings = {
        "scale": 2,
        "student": {"name": "edsr-tiny", "options": {"blocks": 1, "channels": 8}},
        "data": {"train": [str(photos)], "patch": 12, "batch": 4, "store": str(tmp_path / "store")},
        "teacher": {"mode": teacher_mode},
        "run": {"steps": 20, "out": str(tmp_path / "run"), "device": "cpu", "precision": "fp32"},
    }
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # the first one imports what keeps the frames of then
    gc.collect()
    gc.disable()
    try:
        train(parse_config(settings, "test"), teacher=freeze(Nearest(2)))
        assert alive == [True] * 15 + [False] * 5
        assert [image() for image in held] == [None]
    finally:
        gc.enable()
