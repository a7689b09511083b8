"""Training steps of the real loop against bare ones, of one mode against another, and against plain PyTorch.

Everything runs in turns, a few steps at a time, so that a drift of the machine falls on all; figures are medians over
the rounds. A bare step has its tensors ready: forward, backward, optimiser. Two bare loops (A/A) show how far two equal
things differ in such a run. `goal` is a limit of the ratio in its row.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from plain import PlainTrainer
from rich.console import Console
from rows import Record
from torch import nn

from eco_fast.config import Config, load_config
from eco_fast.data.store import bicubic_lr
from eco_fast.eco.teacher import freeze
from eco_fast.models import build
from eco_fast.train.compiled import missing_tool
from eco_fast.train.display import Display
from eco_fast.train.environment import configure, resolve
from eco_fast.train.loop import Loop
from eco_fast.train.run_folder import RunFolder
from eco_fast.train.start import load_inputs
from eco_fast.train.step import StudentStep

STEPS = 1_000_000  # of the schedules: none ends within a benchmark
Steps = Callable[[int], None]  # runs some steps
Four = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

CASES = {  # network -> scale, LR patch, steps per round, rounds
    "edsr-tiny": (2, 24, 20, 16),
    "edsr-baseline": (4, 48, 1, 14),
}
BATCH = 16


class Bench:
    """One network: its images on disk, and loops over them."""

    def __init__(self, network: str, folder: Path) -> None:
        self.network, self.folder = network, folder
        self.scale, self.patch, *_ = CASES[network]
        (folder / "photos").mkdir(parents=True)
        for i, (hr, *_) in enumerate(smooth_images(16, self.scale)):
            Image.fromarray(hr).save(folder / "photos" / f"{i}.png")

    def config(self, **settings: object) -> Config:
        flags = {
            "scale": self.scale,
            "mode": "vanilla",
            "student.name": self.network,
            "data.train": [str(self.folder / "photos")],
            "data.store": str(self.folder / "store"),
            "data.patch": self.patch,
            "data.batch": BATCH,
            "data.source": "resident",
            "teacher.precision": "bf16",
            "optim.clip_value": 0.1,
            "run.steps": STEPS,
            "run.device": "cpu",
            "run.log_every": 5 * CASES[self.network][2],
            "run.out": str(self.folder / "run"),
        }
        flags |= {key.replace("__", "."): value for key, value in settings.items()}
        return resolve(load_config("edsr-baseline", flags=flags))

    def teacher(self) -> nn.Module:
        torch.manual_seed(1)
        return freeze(build(self.network, self.scale)).to(memory_format=torch.channels_last)

    def loop(self, **settings: object) -> Steps:
        """The real one: data path, lanes, guards, clip, average, lines of the log."""
        config = self.config(**settings)
        configure(config.run)
        display = Display(Console(quiet=True))
        inputs = load_inputs(config, self.teacher(), display)
        folder = RunFolder(Path(config.run.out), 1)
        folder.path.mkdir(exist_ok=True)
        loop = Loop(config, folder, inputs, StudentStep(inputs.student, config), display)
        numbers = iter(range(STEPS))
        return lambda count: [loop.advance(next(numbers)) for _ in range(count)] and None

    def bare(self, *, precision: str | None = None, channels_last: bool = True, compile_: bool = False) -> Steps:
        """Forward, L1, backward, Adam on tensors that are there."""
        config = self.config()
        torch.manual_seed(0)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        student = build(self.network, self.scale).to(memory_format=layout)
        side = self.patch * self.scale
        x = torch.rand(BATCH, 3, self.patch, self.patch).to(memory_format=layout)
        y = torch.rand(BATCH, 3, side, side).to(memory_format=layout)
        optimizer = torch.optim.Adam(student.parameters(), lr=2e-4, betas=(0.9, 0.99), fused=True)
        low = (precision or config.run.precision) == "bf16"
        forward = torch.compile(student, dynamic=False, fullgraph=True) if compile_ else student

        def steps(count: int) -> None:
            for _ in range(count):
                with torch.autocast("cpu", torch.bfloat16, enabled=low):
                    sr = forward(x)
                F.l1_loss(sr.float(), y).mul(255).backward()
                optimizer.step()
                optimizer.zero_grad()

        return steps

    def teacher_alone(self) -> Steps:
        """Its forward pass on the windows of a batch."""
        teacher = self.teacher()
        side = self.patch + 2 * self.config().teacher.context
        x = torch.rand(BATCH, 3, side, side).to(memory_format=torch.channels_last)
        low = self.config().run.precision == "bf16"

        def steps(count: int) -> None:
            for _ in range(count):
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=low):
                    teacher(x)

        return steps


def smooth_images(count: int, scale: int) -> list[Four]:
    """(hr, lr, centroid, centroid_lr) of smooth random images; a step costs the same for photographs."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (54, 80, 3), dtype=np.uint8))
        hr = np.array(coarse.resize((480, 320), Image.Resampling.BICUBIC))
        centroid = np.array(coarse.resize((480, 320), Image.Resampling.BILINEAR))
        images.append((hr, bicubic_lr(hr, scale), centroid, bicubic_lr(centroid, scale)))
    return images


def in_turns(contestants: dict[str, Steps], steps: int, rounds: int) -> dict[str, float]:
    """Median milliseconds per step of each."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            started = time.perf_counter()
            run(steps)
            if number:  # the first round warms up
                seconds[name].append((time.perf_counter() - started) / steps)
    return {name: 1000 * statistics.median(values) for name, values in seconds.items()}


@pytest.fixture(params=CASES)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    yield Bench(request.param, tmp_path / "bench")


@pytest.mark.benchmark(group="loop")
def test_the_loop(benchmark: Any, record: Record, bench: Bench, quick: bool) -> None:
    *_, steps, rounds = CASES[bench.network]
    eco = {"mode": "eco", "alpha__schedule": "constant", "teacher__file": "given"}
    contestants = {
        "bare, A": bench.bare(),
        "bare, B": bench.bare(),
        "vanilla": bench.loop(),
        "vanilla, packed": bench.loop(data__source="packed"),
        "eco, cached teacher": bench.loop(**eco, alpha__value=0.5),
        "eco, alpha 1": bench.loop(**eco, alpha__value=1.0),
        "eco, online teacher": bench.loop(**eco, alpha__value=0.5, teacher__mode="online"),
        "teacher alone": bench.teacher_alone(),
    }
    ms = in_turns(contestants, 1 if quick else steps, 1 if quick else rounds)
    bare, vanilla = min(ms["bare, A"], ms["bare, B"]), ms["vanilla"]
    added = (ms["eco, online teacher"] - vanilla) / ms["teacher alone"]
    ratios = {
        "bare, B": (ms["bare, B"] / ms["bare, A"], "A/A", None),
        "vanilla": (bare / vanilla, "speed of bare", ">= 0.97"),
        "vanilla, packed": (bare / ms["vanilla, packed"], "speed of bare", ">= 0.97"),
        "eco, cached teacher": (ms["eco, cached teacher"] / vanilla, "time of vanilla", "<= 1.03"),
        "eco, alpha 1": (ms["eco, alpha 1"] / vanilla, "time of vanilla", "<= 1.01"),
        "eco, online teacher": (added, "added time of teacher alone", "<= 1.05"),
    }
    for name, value in ms.items():
        ratio, of, goal = ratios.get(name, (None, None, None))
        record(
            f"{bench.network}, {name}",
            ms_per_step=round(value, 2),
            ratio=None if ratio is None else round(ratio, 3),
            of=of,
            goal=goal,
            precision=bench.config().run.precision,
        )
    benchmark.pedantic(lambda: None, rounds=1)


@pytest.mark.benchmark(group="defaults")
def test_default_settings(benchmark: Any, record: Record, bench: Bench, quick: bool) -> None:
    """Against fp32, channels first, eager; and what compilation brings on this machine."""
    *_, steps, rounds = CASES[bench.network]
    contestants = {
        "fp32, NCHW, eager": bench.bare(precision="fp32", channels_last=False),
        "defaults": bench.loop(),
        "bare": bench.bare(),
        "bare, fp32": bench.bare(precision="fp32"),
    }
    if missing_tool() is None:
        contestants["bare, compiled"] = bench.bare(compile_=True)
        contestants["bare, fp32, compiled"] = bench.bare(precision="fp32", compile_=True)
    ms = in_turns(contestants, 1 if quick else steps, 1 if quick else max(12, rounds - 2))
    for name, value in ms.items():
        ratio = ms["fp32, NCHW, eager"] / value
        goal = ">= 3" if name == "defaults" and bench.network == "edsr-baseline" else None
        record(
            f"{bench.network}, {name}",
            ms_per_step=round(value, 2),
            ratio=round(ratio, 3),
            of="speed of fp32, NCHW, eager",
            goal=goal,
            precision=bench.config().run.precision,
        )
    benchmark.pedantic(lambda: None, rounds=1)


@pytest.mark.benchmark(group="plain PyTorch")
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_against_plain_pytorch(benchmark: Any, record: Record, tmp_path: Path, precision: str, quick: bool) -> None:
    """ECO as one would write it without this project, on the same images in memory."""
    bench = Bench("edsr-tiny", tmp_path / "bench")
    plain = PlainTrainer(smooth_images(16, 2), 2, patch=24, batch=BATCH, lr=2e-4, bf16=precision == "bf16")
    eco = {"mode": "eco", "alpha__schedule": "constant", "alpha__value": 0.5, "teacher__file": "given"}
    contestants: dict[str, Steps] = {
        "plain": lambda count: [plain.step(0.5) for _ in range(count)] and None,
        "product": bench.loop(**eco, run__precision=precision),
    }
    *_, steps, rounds = CASES["edsr-tiny"]
    ms = in_turns(contestants, 1 if quick else steps, 1 if quick else rounds)
    record(
        f"edsr-tiny, eco against plain PyTorch, {precision}",
        ms_per_step=round(ms["product"], 2),
        plain_ms=round(ms["plain"], 2),
        ratio=round(ms["plain"] / ms["product"], 3),
        of="speed of plain",
        precision=precision,
    )
    benchmark.pedantic(lambda: None, rounds=1)
