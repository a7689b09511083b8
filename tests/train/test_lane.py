"""The order in which a lane makes, hands out and lets go."""

import weakref

import pytest
import torch

from eco_fast.train.lane import Lane, streams_of


def test_the_device_names_the_streams() -> None:
    assert streams_of("cpu") is torch.cpu
    assert streams_of(torch.device("cuda", 1)) is torch.cuda


@pytest.mark.parametrize("overlap", [True, False])
def test_every_step_gets_its_own(overlap: bool) -> None:
    made: list[int] = []

    def make(step: int) -> torch.Tensor:
        made.append(step)
        return torch.full((2,), step)

    lane = Lane(make, torch.cpu, overlap=overlap)
    seen = []
    for step in range(5, 12):
        value = lane.take(step)
        if step + 1 < 12:
            lane.begin(step + 1)
        seen.append(int(value[0]))
        lane.done(step)
    assert seen == made == list(range(5, 12))


def test_it_works_one_step_ahead() -> None:
    events: list[str] = []
    lane = Lane(lambda step: events.append(f"make {step}") or step, torch.cpu)
    for step in range(3):
        lane.take(step)
        lane.begin(step + 1)
        events.append(f"use {step}")
        lane.done(step)
    assert events == ["make 0", "make 1", "use 0", "make 2", "use 1", "make 3", "use 2"]


class Made:
    """Something that a weak reference can watch."""


def test_at_most_two_are_alive() -> None:
    alive: list[weakref.ref] = []

    def make(step: int) -> Made:
        made = Made()
        alive.append(weakref.ref(made))
        return made

    lane = Lane(make, torch.cpu)
    for step in range(6):
        lane.take(step)
        lane.begin(step + 1)
        lane.done(step)
        assert sum(reference() is not None for reference in alive) == 2
