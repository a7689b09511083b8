"""The production loop under a race checker: no race, and one for every wait that is left out."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from rich.console import Console

from eco_fast.config import parse_config
from eco_fast.data.flat import FlatImages, TrainingSet
from eco_fast.display import Display
from eco_fast.models import build
from eco_fast.train import lane as lane_module
from eco_fast.train.inputs import Inputs
from eco_fast.train.loop import Loop
from eco_fast.train.run_folder import RunFolder
from eco_fast.train.update import make_update
from tests.sets import training_set
from tests.train.race_checker import MAIN, RaceChecker, Streams
from tests.train.test_online import cached

STEPS = 20
WAITS = {"take:wait_stream", "take:wait_event", "_start:wait_event", "close:wait_stream"}
RECORDS = {"_start:record", "done:record"}


def copied(images: TrainingSet) -> TrainingSet:
    """Written by operations, as a copy to a device is."""

    def copy(flat: FlatImages | None) -> FlatImages | None:
        return None if flat is None else FlatImages(*(getattr(flat, field.name).clone() for field in fields(flat)))

    return TrainingSet(copy(images.hr), copy(images.lr), 2, copy(images.centroid), copy(images.centroid_lr))


def run(online: bool, drop: str | None = None, steps: int = 6) -> tuple[RaceChecker, Streams, list[bool]]:
    """Run the production loop for some steps; after each, whether it and the making of the next batch wait in turn."""
    options = {"blocks": 1, "channels": 4}
    document = {
        "mode": "eco",
        "student": {"name": "edsr-tiny", "options": options},
        "alpha": {"schedule": "constant", "value": 0.4},
        "data": {"patch": 8, "batch": 2},
        "run": {"steps": 1000, "log_every": 1000, "device": "cpu", "precision": "fp32", "compile": "off"},
    }
    config = parse_config(document, "test")
    streams = Streams(drop)
    teacher = build("edsr-tiny", 2, **options).requires_grad_(False)
    plain = training_set(2, ((14, 15), (16, 14)))
    stored = plain if online else cached(plain, teacher)
    serial = []
    with pytest.MonkeyPatch.context() as patch, RaceChecker(streams) as checker:
        patch.setattr("eco_fast.train.batches.streams_of", lambda device: streams)
        images = copied(stored)
        for weight in teacher.parameters():
            weight.copy_(weight.clone())
        student = build("edsr-tiny", 2, **options)
        inputs = Inputs(config, images, [], student, teacher if online else None)
        display, folder = Display(Console(quiet=True)), RunFolder(Path("never-made"), 1)
        loop = Loop(config, folder, inputs, make_update(config, student), display)
        updated: list[int] = []  # main's last work on a batch
        done = loop.batches.lane.done
        patch.setattr(loop.batches.lane, "done", lambda step: (updated.append(checker.last[MAIN]), done(step)))
        for step in range(steps):
            loop.advance(step)
            side, ordered = max(checker.last), streams.handler.syncs.is_ordered_after
            serial.append(ordered(MAIN, checker.last[side], side) or ordered(side, updated[-1], MAIN))
        loop.close()
    return checker, streams, serial


@pytest.mark.slow
@pytest.mark.parametrize("online", [False, True])
def test_no_race(online: bool) -> None:
    checker, streams, serial = run(online, steps=STEPS)
    assert not checker.races, checker.races[0]
    assert streams.sites == WAITS | RECORDS
    # Neither lane waits for the other's latest work: they do overlap.
    assert serial == [False] * STEPS


@pytest.mark.slow
@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize("site", sorted(WAITS | RECORDS))
def test_every_wait_is_needed(site: str, online: bool) -> None:
    assert run(online, drop=site)[0].races


@pytest.mark.slow
def test_every_slot_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one there is no race, but no overlap either."""
    monkeypatch.setattr(lane_module, "_SLOTS", 1)
    assert any(run(online=False)[2])


def test_the_checker_sees_a_race() -> None:
    """A write on one stream and a read on another without a wait between them."""
    streams = Streams()
    side = streams.Stream()
    with RaceChecker(streams) as checker:
        with streams.stream(side):
            x = torch.ones(3)
        x + 1
    assert checker.races
