"""Switches of the training loop that must not change what is learnt: 50 steps with and without each."""

import argparse
import os
import subprocess
import sys
import traceback
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
from eco_fast.display import Display
from eco_fast.errors import UserError
from eco_fast.models import build
from eco_fast.proof.outcome import Evidence, NotRun, together
from eco_fast.proof.stage import Stage
from eco_fast.train.inputs import load_inputs
from eco_fast.train.loop import Loop
from eco_fast.train.machine import configure, missing_tool, resolve
from eco_fast.train.run_folder import RunFolder
from eco_fast.train.teacher import freeze
from eco_fast.train.update import GraphedUpdate, make_update
from eco_kernels.dispatch import forget_choices, runs_kernels

STEPS = 50  # through all three phases of alpha
SIMILAR = 1e-3  # relative L2 distance of weights that were computed by other code
_NETWORK, _OPTIONS, _SCALE = "edsr-tiny", {"blocks": 4, "channels": 32}, 2

_SETTLED = 8  # steps after which a loop allocates, compiles and captures no more
_WATCHED = 20  # steps in which the host must not wait for the device

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
        """The same run twice. It must learn too: without that every comparison below would mean nothing."""
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

    def mapped(self) -> Evidence:
        """Patches cut from files, ahead of the step."""
        return self._same(self.weights({"data.source": "mapped"}), self.reference())

    def compiled(self) -> Evidence:
        """The student through torch.compile."""
        if (missing := missing_tool()) is not None:
            raise NotRun(f"torch.compile needs {missing}")
        return _similar(self.weights({"run.compile": "default"}), self.reference())

    def graph(self) -> Evidence:
        """One CUDA graph per update."""
        if self.device != "cuda":
            raise NotRun("only CUDA devices have graphs")
        return _similar(self.weights({"run.graph": True}), self.reference())

    def kernels(self) -> Evidence:
        """Triton kernels against plain PyTorch."""
        if not runs_kernels(torch.device(self.device)):
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
        with self.loop(settings) as loop:
            for step in range(steps):
                loop.advance(step)
            if isinstance(loop.update, GraphedUpdate) and steps and not loop.update.graphs.captures:
                raise RuntimeError("no graph was captured")
            skipped = int(loop.student.state.skipped)
            if skipped:
                raise RuntimeError(f"{skipped} of {steps} updates were skipped")
            return torch.cat([p.detach().double().cpu().reshape(-1) for p in loop.student.parameters.tensors])

    @contextmanager
    def loop(self, settings: Settings = _NONE) -> Iterator[Loop]:
        """The production loop before its first step."""
        config = self._config(settings)
        with _repeatable(config):
            display = Display(Console(quiet=True))
            inputs = load_inputs(config, _teacher(), display)
            folder = RunFolder(Path(config.run.out), 1)
            folder.path.mkdir(exist_ok=True)
            loop = Loop(config, folder, inputs, make_update(config, inputs.student), display)
            try:
                yield loop
            finally:
                loop.close()

    def _config(self, settings: Settings) -> Config:
        flags: dict[str, object] = {
            "mode": "eco",
            "scale": _SCALE,
            "student.name": _NETWORK,
            "student.options": _OPTIONS,
            "teacher.file": "given",
            "teacher.precision": "fp32",
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
            "run.graph": False,
            "run.log_every": STEPS,
        }
        return resolve(load_config("edsr-tiny", flags={**flags, **settings}))

    def _same(self, ours: Tensor, theirs: Tensor) -> Evidence:
        """Whether two runs end as close together as two equal runs do: with the same bits where those have the same."""
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
    forget_choices()
    try:
        yield
    finally:
        os.environ.pop("ECO_KERNELS") if before is None else os.environ.update(ECO_KERNELS=before)
        forget_choices()


SWITCHES: dict[str, Callable[[Training], Evidence]] = {
    "two equal runs": Training.repeat,
    "lanes on and off": Training.lanes,
    "online teacher, lanes on and off": Training.online,
    "mapped and resident": Training.mapped,
    "compiled and eager": Training.compiled,
    "CUDA graph and single launches": Training.graph,
    "kernels and plain PyTorch": Training.kernels,
    "default settings and fp32": Training.everything,
}

LOOPS: dict[str, Settings] = {
    "vanilla": {"mode": "vanilla"},
    "eco": {"run.lanes": True},
    "eco, lanes off": {},
    "eco, online teacher": {"run.lanes": True, "teacher.mode": "online"},
    "eco, LAMB": {"run.lanes": True, "optim.name": "lamb"},
    "eco, mapped": {"run.lanes": True, "data.source": "mapped"},
}
_RACED = ("eco", "eco, online teacher", "eco, mapped")  # where two streams share tensors
_GRAPHED: dict[str, Settings] = {
    "eco, CUDA graph": {"run.lanes": True, "run.graph": True},
    "eco, LAMB, CUDA graph": {"run.lanes": True, "run.graph": True, "optim.name": "lamb"},
}


def loops_on(device: str) -> dict[str, Settings]:
    """Every kind of loop that a device has."""
    return LOOPS | (_GRAPHED if device == "cuda" else {})


def switches(stage: Stage) -> Evidence:
    """All of `SWITCHES`, each for itself: one that fails does not hide the others."""
    runs = Training(stage.scratch / "runs", stage.device)
    found = []
    for name, check in SWITCHES.items():
        try:
            evidence = check(runs)
        except (UserError, NotRun) as reason:  # DALI or a compiler is missing
            stage.say(name, result=f"not run: {reason}")
            continue
        except Exception as error:
            traceback.print_exc()
            evidence = Evidence(0, (f"{type(error).__name__}: {error}".splitlines()[0],))
        stage.say(name, result="; ".join(evidence.faults) or evidence.detail)
        found.append(Evidence(evidence.compared, tuple(f"{name}: {fault}" for fault in evidence.faults)))
    result = together(found)
    return Evidence(result.compared, result.faults, f"{len(found)} of {len(SWITCHES)} switches, {STEPS} steps each")


def loops(stage: Stage) -> Evidence:
    """Steps of every kind of loop; on a GPU a wait of the host for the device between two lines of the log is an error.

    That is what `torch.cuda.set_sync_debug_mode` sees: copies to the host, copies from memory that is not pinned,
    questions about values.
    """
    runs = Training(stage.scratch / "runs", stage.device)
    kinds = loops_on(stage.device)
    faults = []
    for name, settings in kinds.items():
        fault = watch(runs, settings)
        stage.say(name, steps=_WATCHED, result=fault or ("no wait" if stage.device == "cuda" else "ran"))
        faults += [f"{name}: {fault}"] if fault else []
    return Evidence(_WATCHED * len(kinds), tuple(faults), f"{len(kinds)} kinds of loops, {_WATCHED} steps each")


def watch(runs: Training, settings: Settings) -> str:
    """Run a loop while PyTorch watches for waits, and return what went wrong, empty if nothing did."""
    constant = {"alpha.schedule": "constant", "alpha.value": 0.5}  # one phase: a graph is captured before the watch
    with runs.loop({**constant, **settings}) as loop:
        for step in range(_SETTLED):
            loop.advance(step)
        _wait_is_error(runs.device, "error")
        try:
            for step in range(_SETTLED, _SETTLED + _WATCHED):
                loop.advance(step)
        except RuntimeError as error:
            traceback.print_exc()  # where it waits
            return f"{error}".splitlines()[0]
        finally:
            _wait_is_error(runs.device, "default")
        if not loop.student.parameters.weights.isfinite().all():
            return "weights are not finite"
    return ""


def races(stage: Stage) -> Evidence:
    """PyTorch's race checker over loops with two streams, in a process of its own: it is chosen at import."""
    if stage.device != "cuda":
        raise NotRun("a CPU has no streams")
    result = subprocess.run(
        [sys.executable, "-m", "eco_fast.proof.training", str(stage.scratch / "runs")],
        env={**os.environ, "TORCH_CUDA_SANITIZER": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0 or "CSAN" in result.stderr:
        return Evidence(0, (f"exit code {result.returncode}: {result.stderr.strip()[-600:]}",))
    return Evidence(len(_RACED) * _SETTLED, detail=f"no race in {_SETTLED} steps each of {'; '.join(_RACED)}")


def main() -> None:
    """Make some steps with lanes on the GPU, in a process that watches for races."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    runs = Training(parser.parse_args().folder, "cuda")
    for name in _RACED:
        with runs.loop(LOOPS[name]) as loop:
            for step in range(_SETTLED):
                loop.advance(step)
            torch.cuda.synchronize()


def _wait_is_error(device: str, mode: str) -> None:
    if device == "cuda":
        torch.cuda.set_sync_debug_mode(mode)


if __name__ == "__main__":
    main()
