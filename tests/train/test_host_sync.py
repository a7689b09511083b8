"""The hot loop never waits for the device: nothing in it asks for a value."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from eco_fast.config import Config, parse_config
from eco_fast.models import build
from eco_fast.train.batches import Batch, Batches
from eco_fast.train.inputs import Inputs
from eco_fast.train.teacher import freeze
from eco_fast.train.update import make_update
from eco_fast.train.world import World
from tests.sets import training_set
from tests.train.test_online import cached

ASKS = ("item", "nonzero", "is_nonzero", "_local_scalar_dense", "masked_select", "unique", "equal")
OPTIONS = {"blocks": 1, "channels": 4}
STEPS = 50


class Watch(TorchDispatchMode):
    """Fails where a value is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ASKS:
            raise AssertionError(f"the host waits for {name}")
        self.seen += 1
        return func(*args, **(kwargs or {}))


def config(**sections: dict[str, object]) -> Config:
    document: dict[str, Any] = {
        "mode": "eco",
        "scale": 2,
        "student": {"name": "edsr-tiny", "options": OPTIONS},
        "data": {"patch": 8, "batch": 4},
        "optim": {"clip_value": 0.1, "clip_norm": 5.0},
        "run": {"steps": STEPS, "device": "cpu", "precision": "bf16", "compile": "off"},
    }
    for name, section in sections.items():
        document[name] = document.get(name, {}) | section
    return parse_config(document, "test")


@pytest.mark.parametrize("optimiser", ["adam", "lamb"])
@pytest.mark.parametrize("online", [False, True])
def test_a_whole_schedule(optimiser: str, online: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of all three phases, updates, average and guards; all but the lines of the log."""
    # Of tensors on a GPU the values are not looked at; those on the CPU are there.
    for check in ("gather.check_store", "mix.check_range"):
        monkeypatch.setattr(f"eco_kernels.{check}", lambda *_: None)
    settings = config(optim={"name": optimiser})
    student, teacher = build("edsr-tiny", 2, **OPTIONS), freeze(build("edsr-tiny", 2, **OPTIONS))
    plain = training_set(2, ((14, 15), (16, 14)))
    images = plain if online else cached(plain, teacher)
    inputs = Inputs(settings, images, [], student, teacher if online else None)
    update = make_update(settings, student)
    batches = Batches(settings, inputs, World(), update.times)

    def train(first: int, last: int) -> None:
        for step in range(first, last):
            update.schedule(step)
            update(batches.take(step))
            batches.done(step)

    train(0, 1)  # tables of the bicubic are made once
    with Watch() as watch:
        train(1, STEPS)
    assert watch.seen > STEPS * 100


@pytest.mark.parametrize(
    "ask",
    [
        lambda t: t.item(),
        lambda t: bool(t > 0),
        lambda t: t.view(1).nonzero(),
        lambda t: t.view(1).masked_select(t.view(1) > 0),
        lambda t: torch.ones(3) * float(t),
    ],
)
def test_the_watch_sees_what_waits(ask: Callable[[Tensor], object]) -> None:
    with Watch(), pytest.raises(AssertionError, match="waits"):
        ask(torch.tensor(1.0))


SECTIONS: dict[str, dict[str, dict[str, object]]] = {
    "adam": {"optim": {"name": "adam"}},
    "lamb": {"optim": {"name": "lamb"}},
    "fp16": {"run": {"precision": "fp16"}},
    "accumulate": {"optim": {"accumulate": 2}},
    "graph": {"optim": {"name": "lamb"}, "run": {"graph": True}},
}


@pytest.mark.parametrize("sections", SECTIONS.values(), ids=SECTIONS.keys())
def test_an_update_without_values(sections: dict[str, dict[str, object]], monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device `meta`, where tensors have no values: there is nothing to ask for, and nothing to copy out."""
    monkeypatch.setenv("ECO_KERNELS", "reference")
    monkeypatch.setattr("eco_fast.train.learner.autocast", lambda *_: nullcontext())  # it knows no such device
    monkeypatch.setattr("eco_fast.train.learner.rounded_by_autocast", lambda *_: [])
    settings = config(**sections)
    settings = settings.model_copy(update={"run": settings.run.model_copy(update={"device": "meta"})})
    student = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.PixelShuffle(2)).to("meta")
    update = make_update(settings, student)
    x = torch.empty((4, 3, 8, 8), device="meta")
    hr, centroid = (torch.empty((4, 3, 16, 16), dtype=torch.uint8, device="meta") for _ in range(2))
    for step in range(3):
        update.schedule(step)
        loss, skip = update(Batch(x, hr, centroid, torch.full((), 0.5, device="meta")))
    assert loss.device.type == skip.device.type == "meta"


@pytest.mark.parametrize("ask", [lambda t: t.item(), lambda t: t.cpu(), lambda t: bool(t > 0), lambda t: t.nonzero()])
def test_there_is_nothing_to_ask_for(ask: Callable[[Tensor], object]) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        ask(torch.empty((), device="meta"))
