"""The production lane, batches and step under a race checker: no race, and one for every wait that is left out."""

from dataclasses import fields

import pytest
import torch

from eco_fast.config import parse_config
from eco_fast.data.resident import Resident
from eco_fast.data.sampler import Sampler
from eco_fast.data.store import FlatImages, TrainingSet
from eco_fast.models import build
from eco_fast.train import lane as lane_module
from eco_fast.train.batch_maker import BatchMaker
from eco_fast.train.lane import Lane
from eco_fast.train.online import OnlineTeacher
from eco_fast.train.phases import Phases
from eco_fast.train.step import StudentStep
from tests.train.race_checker import MAIN, RaceChecker, Streams
from tests.train.test_online import cached, training_set

STEPS = 20
WAITS = {"take:wait_stream", "take:wait_event", "_start:wait_event", "close:wait_stream"}
RECORDS = {"_start:record", "done:record"}


def copied(images: TrainingSet) -> TrainingSet:
    """Written by operations, as a copy to a device is."""

    def copy(flat: FlatImages | None) -> FlatImages | None:
        return None if flat is None else FlatImages(*(getattr(flat, field.name).clone() for field in fields(flat)))

    return TrainingSet([], copy(images.hr), copy(images.lr), 2, copy(images.centroid), copy(images.centroid_lr))


def run(online: bool, drop: str | None = None, steps: int = 6) -> tuple[RaceChecker, Streams, list[bool]]:
    """Train for some steps; for every step, whether the batch after it was ordered before it."""
    options = {"blocks": 1, "channels": 4}
    document = {
        "mode": "eco",
        "student": {"name": "edsr-tiny", "options": options},
        "alpha": {"schedule": "constant", "value": 0.4},
        "data": {"patch": 8, "batch": 2},
        "run": {"steps": steps, "device": "cpu", "precision": "fp32", "compile": "off"},
    }
    config = parse_config(document, "test")
    streams = Streams(drop)
    teacher = build("edsr-tiny", 2, **options).requires_grad_(False)
    plain = training_set(2, ((14, 15), (16, 14)))
    stored = plain if online else cached(plain, teacher)
    serial = []
    with RaceChecker(streams) as checker:
        images = copied(stored)
        for weight in teacher.parameters():
            weight.copy_(weight.clone())
        sampler = Sampler(plain.lr.heights, plain.lr.widths, 2, 8, 2, seed=0)
        asked = OnlineTeacher(teacher, images, 8) if online else None
        make = BatchMaker(Phases(config), sampler.plan, Resident(images, sampler.plan), 8, asked)
        lane = Lane(make, streams)
        state = StudentStep(build("edsr-tiny", 2, **options), config)
        for step in range(steps):
            batch = lane.take(step)
            if step + 1 < steps:
                lane.begin(step + 1)
            side = max(checker.last)
            serial.append(streams.handler.syncs.is_ordered_after(MAIN, checker.last[side], side))
            state(step, batch)
            lane.done(step)
        del batch
        lane.close()
    return checker, streams, serial


@pytest.mark.slow
@pytest.mark.parametrize("online", [False, True])
def test_no_race(online: bool) -> None:
    checker, streams, serial = run(online, steps=STEPS)
    assert not checker.races, checker.races[0]
    assert streams.sites == WAITS | RECORDS
    # The next batch is not waited for: the lanes do overlap.
    assert serial == [False] * (STEPS - 1) + [True]


@pytest.mark.slow
@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize("site", sorted(WAITS | RECORDS))
def test_every_wait_is_needed(site: str, online: bool) -> None:
    assert run(online, drop=site)[0].races


@pytest.mark.slow
def test_every_slot_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_module, "_SLOTS", 1)
    with pytest.raises((AssertionError, RuntimeError)):
        assert not run(online=False)[0].races


def test_the_checker_sees_a_race() -> None:
    """A write on one stream and a read on another without a wait between them."""
    streams = Streams()
    side = streams.Stream()
    with RaceChecker(streams) as checker:
        with streams.stream(side):
            x = torch.ones(3)
        x + 1
    assert checker.races
