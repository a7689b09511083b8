"""Switches of the training loop that must not change what is learnt: 50 steps with and without each."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from eco_fast.config import Config, load_config
from eco_fast.eco.teacher import freeze
from eco_fast.models import build
from eco_fast.proof.outcome import Evidence, NotRun
from eco_fast.train.compiled import missing_tool
from eco_fast.train.display import Display
from eco_fast.train.environment import configure, resolve
from eco_fast.train.graph import GraphedStep
from eco_fast.train.loop import Loop
from eco_fast.train.run_folder import RunFolder
from eco_fast.train.start import load_inputs
from eco_fast.train.step import StudentStep
from eco_kernels.dispatch import implementation

STEPS = 50  # through all three phases of alpha
SIMILAR = 1e-3  # relative L2 distance of weights that were computed by other code
_NETWORK, _OPTIONS, _SCALE = "edsr-tiny", {"blocks": 4, "channels": 32}, 2

Settings = Mapping[str, object]  # keys of the recipe
_NONE: Settings = MappingProxyType({})


class Training:
    """Short runs of the production loop on images that are made here."""

    def __init__(self, folder: Path, device: str) -> None:
        self.folder, self.device = folder, device
        (folder / "images").mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(0)
        for i in range(4):
            coarse = Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8))
            coarse.resize((240, 200), Image.Resampling.BICUBIC).save(folder / "images" / f"{i}.png")
        self._references: dict[str, Tensor] = {}

    def repeat(self) -> Evidence:
        """The same run twice; and that it learns at all, or everything below would be equal for nothing."""
        if relative_distance(self.reference(), self.weights(steps=0)) == 0:
            return Evidence(STEPS, (f"{STEPS} steps change no weight",))
        faults = () if self.apart <= SIMILAR else (f"two equal runs end {self.apart:.1e} apart",)
        return Evidence(STEPS, faults, _told(self.apart))

    @cached_property
    def apart(self) -> float:
        """How far equal runs end apart on this device."""
        return relative_distance(self.weights(), self.reference())

    def lanes(self) -> Evidence:
        """Batches made a step ahead, on a stream of their own."""
        return self._same(self.weights({"run.lanes": True}), self.reference())

    def online(self) -> Evidence:
        """A teacher that runs beside the student."""
        online = {"teacher.mode": "online"}
        return self._same(self.weights(online | {"run.lanes": True}), self.reference(online))

    def packed(self) -> Evidence:
        """Patches read from files by DALI."""
        return self._same(self.weights({"data.source": "packed"}), self.reference())

    def compiled(self) -> Evidence:
        """The student through torch.compile."""
        if (missing := missing_tool()) is not None:
            raise NotRun(f"torch.compile needs {missing}")
        return _similar(self.weights({"run.compile": "default"}), self.reference())

    def graph(self) -> Evidence:
        """One CUDA graph per update."""
        if self.device != "cuda":
            raise NotRun("graphs are of CUDA devices")
        return _similar(self.weights({"run.graph": True}), self.reference())

    def kernels(self) -> Evidence:
        """Triton kernels against plain PyTorch."""
        if not implementation(torch.device(self.device)).__name__.endswith("gpu"):
            raise NotRun("plain PyTorch computes here")
        ours = self.reference()
        with _plain_pytorch():
            return _similar(self.weights(), ours)

    def everything(self) -> Evidence:
        """Default settings and a graph, in the precision of the device, against fp32 one after the other."""
        settings: dict[str, object] = {"run.lanes": True, "run.compile": "auto", "run.precision": "auto"}
        settings |= {"run.graph": True} if self.device == "cuda" else {}
        start, end, ours = self.weights(steps=0), self.reference(), self.weights(settings)
        learnt = relative_distance(ours - start, end - start)
        # Adam's first steps go by the sign of a gradient: where that is near 0, other roundings take another way.
        faults = () if learnt < 0.5 else (f"what was learnt differs by {learnt:.0%}",)
        return Evidence(STEPS, faults, f"what was learnt differs by {learnt:.1%}")

    def reference(self, settings: Settings = _NONE) -> Tensor:
        """Weights of a run in fp32 with all switches off."""
        key = repr(dict(settings))
        if key not in self._references:
            self._references[key] = self.weights(settings)
        return self._references[key]

    def weights(self, settings: Settings = _NONE, *, steps: int = STEPS) -> Tensor:
        """Train and return all weights as one vector, float64 on the CPU."""
        config = self._config(settings)
        with _repeatable(config):
            display = Display(Console(quiet=True))
            inputs = load_inputs(config, _teacher(), display)
            folder = RunFolder(Path(config.run.out), 1)
            folder.path.mkdir(exist_ok=True)
            state = StudentStep(inputs.student, config)
            loop = Loop(config, folder, inputs, state, display)
            for step in range(steps):
                loop.advance(step)
            if isinstance(loop.update, GraphedStep) and steps and loop.update.graph is None:
                raise RuntimeError("no graph was captured")
            loop.lane.close()
            loop.maker.close()
            skipped = int(state.guard.check(STEPS, steps, "no checkpoint is written"))
        if skipped:
            raise RuntimeError(f"{skipped} of {steps} updates were skipped")
        return torch.cat([p.detach().double().cpu().reshape(-1) for p in state.parameters])

    def _config(self, settings: Settings) -> Config:
        flags: dict[str, object] = {
            "mode": "eco",
            "scale": _SCALE,
            "student.name": _NETWORK,
            "student.options": _OPTIONS,
            "teacher.file": "given",
            "data.train": [str(self.folder / "images")],
            "data.store": str(self.folder / "store"),
            "data.patch": 24,
            "data.batch": 8,
            "data.source": "resident",
            "run.steps": STEPS,
            "run.out": str(self.folder / "run"),
            "run.device": self.device,
            "run.threads": 1,  # the networks are tiny, and threads of other processes would be waited for
            "run.precision": "fp32",
            "run.compile": "off",
            "run.lanes": False,
            "run.log_every": STEPS,
        }
        return resolve(load_config("edsr-tiny", flags={**flags, **settings}))

    def _same(self, ours: Tensor, theirs: Tensor) -> Evidence:
        """As close as two equal runs are: to the bit where those are."""
        distance = relative_distance(ours, theirs)
        faults = () if distance <= 4 * self.apart else (f"{distance:.1e} apart, two equal runs {self.apart:.1e}",)
        return Evidence(STEPS, faults, _told(distance))


def relative_distance(ours: Tensor, theirs: Tensor) -> float:
    """L2 distance over the length of `theirs`; infinite if anything is not a number."""
    distance = ((ours - theirs).norm() / theirs.norm()).item()
    return distance if distance == distance else float("inf")


def _similar(ours: Tensor, theirs: Tensor) -> Evidence:
    distance = relative_distance(ours, theirs)
    faults = () if distance <= SIMILAR else (f"{distance:.1e} apart, allowed {SIMILAR:.0e}",)
    return Evidence(STEPS, faults, _told(distance))


def _told(distance: float) -> str:
    return f"{STEPS} steps, " + ("the same bits" if distance == 0 else f"weights {distance:.1e} apart")


def _teacher() -> nn.Module:
    torch.manual_seed(1)
    return freeze(build(_NETWORK, _SCALE, **_OPTIONS))


@contextmanager
def _repeatable(config: Config) -> Iterator[None]:
    """cuDNN's repeatable algorithms, which training does not ask for."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    configure(config.run)
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before


@contextmanager
def _plain_pytorch() -> Iterator[None]:
    before = os.environ.get("ECO_KERNELS")
    os.environ["ECO_KERNELS"] = "reference"
    implementation.cache_clear()
    try:
        yield
    finally:
        os.environ.pop("ECO_KERNELS") if before is None else os.environ.update(ECO_KERNELS=before)
        implementation.cache_clear()


CHECKS: dict[str, Callable[[Training], Evidence]] = {
    "two equal runs": Training.repeat,
    "lanes on and off": Training.lanes,
    "online teacher, lanes on and off": Training.online,
    "packed and resident": Training.packed,
    "compiled and eager": Training.compiled,
    "CUDA graph and single launches": Training.graph,
    "kernels and plain PyTorch": Training.kernels,
    "default settings and fp32": Training.everything,
}
