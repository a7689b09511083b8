"""Loops to time: the real one with any settings, and bare ones, on the device that is there."""

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from plain import PlainEdsr, PlainTrainer, TunedTrainer
from rich.console import Console
from torch import nn

from eco_fast.config import Config, RunConfig, load_config
from eco_fast.data.pixels import bicubic_lr
from eco_fast.display import Display
from eco_fast.models import build
from eco_fast.train.graph import Graphs
from eco_fast.train.inputs import load_inputs
from eco_fast.train.lane import streams_of
from eco_fast.train.loop import Loop
from eco_fast.train.machine import configure, device_type, has_fast_bf16, resolve
from eco_fast.train.run_folder import RunFolder
from eco_fast.train.teacher import freeze
from eco_fast.train.update import make_update
from eco_kernels.dispatch import forget_choices

STEPS = 1_000_000  # of the schedules: none ends within a benchmark
BATCH = 16
Steps = Callable[[int], None]  # runs some steps
Four = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

CASES = {  # network -> scale, LR patch, steps per round, rounds
    "edsr-tiny": (2, 24, 20, 16),
    "edsr-baseline": (4, 48, 20 if torch.cuda.is_available() else 1, 14),
}
WIDTHS = {"edsr-tiny": {"blocks": 8, "channels": 32}, "edsr-baseline": {"blocks": 16, "channels": 64}}  # as plain EDSR


class Bench:
    """One network: its images on disk, and loops over them."""

    def __init__(
        self, network: str, folder: Path, *, quick: bool = False, device: str | None = None, batch: int = BATCH
    ) -> None:
        self.network, self.folder, self.device = network, folder, device or device_type("auto")
        self.batch = 2 if quick else batch
        self.precision = "bf16" if has_fast_bf16(self.device) else "fp32"  # emulated bf16 takes many times fp32's time
        torch.compiler.reset()  # networks of one class share a cache of a few entries
        self.scale, patch, *_ = CASES.get(network, CASES["edsr-baseline"])
        self.patch = min(patch, 24) if quick else patch
        self.images = smooth_images(2 if quick else 16, self.scale)
        (folder / "photos").mkdir(parents=True)
        for i, (hr, *_) in enumerate(self.images):
            Image.fromarray(hr).save(folder / "photos" / f"{i}.png")

    def config(self, **settings: object) -> Config:
        flags = {
            "scale": self.scale,
            "mode": "vanilla",
            "student.name": self.network,
            "data.train": [str(self.folder / "photos")],
            "data.store": str(self.folder / "store"),
            "data.patch": self.patch,
            "data.batch": self.batch,
            "data.source": "resident",
            "teacher.precision": self.precision,
            "optim.clip_value": 0.1,
            "run.steps": STEPS,
            "run.log_every": 5 * CASES.get(self.network, CASES["edsr-baseline"])[2],
            "run.device": self.device,
            "run.graph": False,
            "run.out": str(self.folder / "run"),
        }
        flags |= {key.replace("__", "."): value for key, value in settings.items()}
        return resolve(load_config("edsr-baseline", flags=flags))

    def teacher(self) -> nn.Module:
        torch.manual_seed(1)
        return freeze(build(self.network, self.scale)).to(self.device).to(memory_format=torch.channels_last)

    def loop(self, *, kernels: str = "auto", **settings: object) -> Steps:
        """The real loop: data path, lanes, guards, clip, average, lines of the log.

        Args:
            kernels: The choice ECO_KERNELS.
            settings: Keys of the recipe, `__` for the dot.
        """
        config = self.config(**settings)
        display = Display(Console(quiet=True))
        configure(config.run)
        inputs = load_inputs(config, self.teacher(), display)
        folder = RunFolder(Path(config.run.out), 1)
        folder.path.mkdir(exist_ok=True)
        loop = Loop(config, folder, inputs, make_update(config, inputs.student), display)
        numbers = iter(range(STEPS))

        def steps(count: int) -> None:
            configure(config.run)  # switches of the process: others have run meanwhile
            choose_kernels(kernels)
            for _ in range(count):
                loop.advance(next(numbers))

        return steps

    def losses(self, out: str) -> list[float]:
        """The losses that the loop whose `run.out` this was has logged."""
        lines = Path(out, "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [record["loss"] for record in map(json.loads, lines) if record["kind"] == "train"]

    def bare(self, *, precision: str | None = None, channels_last: bool = True, compile_: str | None = None) -> Steps:
        """Forward, L1, backward, Adam on tensors that are there.

        Args:
            precision: "fp32" or "bf16"; the default of training if None.
            channels_last: Or channels first.
            compile_: A mode of `torch.compile`, for the network and the loss together; eager if None. With
                "reduce-overhead" PyTorch puts both passes into CUDA graphs of its own.
        """
        run = self.config(**({} if precision is None else {"run__precision": precision})).run
        torch.manual_seed(0)
        network = build(self.network, self.scale)

        def loss_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            with torch.autocast(self.device, torch.bfloat16, enabled=run.precision == "bf16"):
                sr = network(x)
            return F.l1_loss(sr.float(), y).mul(255)

        return self._loop_of(network, loss_of, run, channels_last=channels_last, compile_=compile_)

    def usual(self, *, bf16: bool, channels_last: bool = True) -> Steps:
        """The step of trainers in wide use, on tensors that are there: all of the network under autocast, fused Adam.

        Args:
            bf16: Else fp32.
            channels_last: Or channels first.
        """
        run = self.config(run__precision="bf16" if bf16 else "fp32").run
        torch.manual_seed(0)
        network = PlainEdsr(self.scale, **WIDTHS[self.network])

        def loss_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            with torch.autocast(self.device, torch.bfloat16, enabled=bf16):
                return F.l1_loss(network(x), y)

        return self._loop_of(network, loss_of, run, channels_last=channels_last)

    def _loop_of(
        self,
        network: nn.Module,
        loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        run: RunConfig,
        *,
        channels_last: bool,
        compile_: str | None = None,
    ) -> Steps:
        """Loss, backward, Adam on tensors that are there."""
        layout = torch.channels_last if channels_last else torch.contiguous_format
        network.to(self.device).to(memory_format=layout)
        x, y = self._tensors(layout)
        optimizer = torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.9, 0.99), fused=True)
        compiled = loss_of
        if compile_ is not None:
            for tensor in (x, y):
                torch._dynamo.mark_static_address(tensor)  # else PyTorch's graphs copy it in every step
            compiled = torch.compile(loss_of, dynamic=False, fullgraph=True, mode=compile_)

        def steps(count: int) -> None:
            configure(run)
            for _ in range(count):
                if compile_ == "reduce-overhead":
                    torch.compiler.cudagraph_mark_step_begin()
                compiled(x, y).backward()
                optimizer.step()
                optimizer.zero_grad()

        return steps

    def plain(self, *, bf16: bool) -> Steps:
        """ECO as one would write it without this project, see `plain.py`; on a GPU it waits for its host."""
        trainer = PlainTrainer(
            self.images, self.scale, patch=self.patch, batch=self.batch, lr=2e-4, bf16=bf16,
            device=self.device, **WIDTHS[self.network],
        )  # fmt: skip
        full = "tf32" if self.device == "cuda" else "fp32"  # of convolutions, where nothing else is asked for
        run = self.config(run__precision="bf16" if bf16 else full).run

        def steps(count: int) -> None:
            configure(run)
            for _ in range(count):
                trainer.step(0.5)

        return steps

    def tuned(self, *, compile_: bool) -> Steps:
        """`plain`, tuned with what PyTorch itself has, and fed on the device."""
        trainer = TunedTrainer(
            self.images, self.scale, patch=self.patch, batch=self.batch, lr=2e-4, device=self.device,
            bf16=self.precision == "bf16", compile_=compile_, **WIDTHS[self.network],
        )  # fmt: skip
        run, alpha = self.config(run__precision=self.precision).run, torch.full((), 0.5, device=self.device)

        def steps(count: int) -> None:
            configure(run)
            for _ in range(count):
                trainer.step(alpha)

        return steps

    def _tensors(self, layout: torch.memory_format) -> tuple[torch.Tensor, torch.Tensor]:
        """Input and target of a batch."""
        low, high = self.patch, self.patch * self.scale
        x, y = (torch.rand(self.batch, 3, side, side, device=self.device) for side in (low, high))
        return x.to(memory_format=layout), y.to(memory_format=layout)

    def teacher_alone(self, *, graph: bool = False) -> Steps:
        """The teacher's forward pass on the windows of a batch, as a CUDA graph or launch by launch."""
        teacher, config = self.teacher(), self.config()
        side = self.patch + 2 * config.teacher.context
        x = torch.rand(self.batch, 3, side, side, device=self.device).to(memory_format=torch.channels_last)
        graphs = Graphs("the teacher", self.device) if graph else None

        def forward(x: torch.Tensor) -> tuple[torch.Tensor]:
            with torch.no_grad(), torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16"):
                return (teacher(x),)

        def steps(count: int) -> None:
            configure(config.run)
            for _ in range(count):
                forward(x) if graphs is None else graphs(0, "windows", forward, x)

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


def choose_kernels(choice: str) -> None:
    """Compute the operations by the kernels or by plain PyTorch from now on."""
    if os.environ.get("ECO_KERNELS", "auto") != choice:
        os.environ["ECO_KERNELS"] = choice
        forget_choices()


def recover(device: str) -> None:
    """After a contestant that failed, maybe in the capture of its graph: back to the default stream, no work left.

    Raises:
        RuntimeError: The device takes no more work from this process.
    """
    if device == "cuda":
        torch.cuda.set_stream(torch.cuda.default_stream())
    streams_of(device).synchronize()


def in_turns(
    contestants: Mapping[str, Steps],
    steps: int | Mapping[str, int],
    rounds: int,
    *,
    device: str | None = None,
    until: float = float("inf"),
    failed: Callable[[str, Exception], None] | None = None,
) -> dict[str, list[float]]:
    """Seconds per step of each in every round, the device's work included.

    Args:
        contestants: By name.
        steps, rounds: Each runs so many steps, all the same or by name, in so many rounds, after one that warms up.
        device: Where all of them run; that of `auto` if None.
        until: No round is begun after this time of `time.monotonic`, but the first two.
        failed: Called with a contestant that raises, which then runs no more; without this, the error ends all.
    """
    device = device or device_type("auto")
    synchronize = streams_of(device).synchronize
    counts = {name: steps if isinstance(steps, int) else steps[name] for name in contestants}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        if number > 1 and time.monotonic() > until:
            break
        for name in list(seconds):
            synchronize()
            started = time.perf_counter()
            try:
                contestants[name](counts[name])
                synchronize()
            except Exception as error:
                if failed is None:
                    raise
                failed(name, error)
                del seconds[name]
                continue
            if number:  # the first round warms up
                seconds[name].append((time.perf_counter() - started) / counts[name])
    return seconds


def medians_ms(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Median milliseconds of each."""
    return {name: 1000 * statistics.median(values) for name, values in seconds.items()}
