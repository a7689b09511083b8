"""What a training step launches on a GPU, counted without one.

    python benchmarks/launches.py [--csv FILE] [NETWORK-xSCALE ...]

The step runs on the CPU in bf16, operator by operator, with Triton's launches on a driver that only counts them. An
operator of PyTorch counts as one launch, but for: none if it only makes a view or empty memory; a convolution two with
a bias, its gradients one each for input, weight and bias; a `foreach` operator as many as PyTorch's tables of 64
tensors and 320 blocks need. What cuDNN launches beside a convolution, for layouts and workspaces, is not counted.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import triton
from rows import write_figures
from steps import Bench
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode

from eco_fast.proof import offline_launches
from eco_fast.train.batches import Batches
from eco_fast.train.inputs import load_inputs
from eco_fast.train.update import EcoUpdate, make_update
from eco_fast.train.world import World
from eco_kernels import dispatch

NETWORKS = ("edsr-tiny-x2", "edsr-baseline-x4", "rcan-x4")
_TENSORS, _BLOCKS, _CHUNK = 64, 320, 65536  # of a foreach operator's launch: two lists of tensors
_NO_LAUNCH = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "lift_fresh")


class Count(TorchDispatchMode):
    """Counts launches under the name of the part that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: Counter[str] = Counter()
        self.casts = 0
        self._part = ""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._part = name
        with self:
            yield
        self._part = ""

    def launch(self) -> None:
        """Count one."""
        if self._part:
            self.parts[self._part] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "eco_kernels":  # an operator of ours: what it launches is counted
            with self:
                return OPDEFS[func.name()]._init_fn(*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        launched = launches(func, args, result)
        self.parts[self._part] += launched
        if launched and func.overloadpacket.__name__ in ("_to_copy", "to"):
            self.casts += 1
        return result


def launches(func: Any, args: Any, result: Any) -> int:
    """How many launches an operator is on a GPU."""
    name = func.overloadpacket.__name__
    views = any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)
    if views or name in _NO_LAUNCH or name == "detach":
        return 0
    if name == "convolution":
        return 1 + (args[2] is not None)
    if name == "convolution_backward":
        return sum(args[10])
    if name.startswith("_foreach"):
        tensors: list[Tensor] = args[0]
        if len({tensor.dtype for tensor in args[1]}) > 1:  # PyTorch has a launch for lists of one type each
            return len(tensors)
        blocks = sum(-(-tensor.numel() // _CHUNK) for tensor in tensors)
        return max(-(-len(tensors) // _TENSORS), -(-blocks // _BLOCKS))
    return 1


def count_step(network: str, optimizer: str) -> Count:
    """The launches of one step of mode `eco` with a stored teacher, batch 2."""
    name, _, scale = network.rpartition("-x")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(name, Path(folder, "bench"), quick=True, device="cpu")
        bench.scale = int(scale)
        eco = {"mode": "eco", "alpha__schedule": "constant", "alpha__value": 0.5, "teacher__file": "given"}
        optim = {"optim__name": optimizer, "optim__clip_norm": 1.0, "optim__clip_value": 0.1}
        config = bench.config(**eco, **optim, run__precision="bf16", run__compile="off", run__lanes=False)
        inputs = load_inputs(config, bench.teacher(), offline_launches.Display(offline_launches.Console(quiet=True)))
        update = make_update(config, inputs.student)
        assert isinstance(update, EcoUpdate)
        batches = Batches(config, inputs, World(), update.times)
        count = Count()
        dispatch.forget_choices()
        with (
            mock.patch.object(dispatch, "runs_kernels", lambda device: True),
            mock.patch("eco_kernels.gather.check_store"),  # of tensors on a GPU the values are not looked at
        ):
            batches.take(0)  # the plans of a block are made and moved
            for step, counted in ((1, Count()), (2, count)):  # the first one makes constants
                CountingLauncher.current[:] = [counted]
                _step(step, update, batches, counted)
        dispatch.forget_choices()
        batches.close()
    return count


def _step(step: int, update: EcoUpdate, batches: Batches, count: Count) -> None:
    student = update.learners["student"]
    with count.part("batch"):
        batch = batches.take(step)
    student.schedule(step)
    with count.part("forward"):
        sr = student(batch.x)
    with count.part("loss"):
        loss, grad = update.loss(sr, batch, None)
    with count.part("backward"):
        sr.backward(grad)
    with count.part("gather gradients"):
        student.parameters.gather()
    with count.part("update"):
        student.apply(loss)


class CountingLauncher(offline_launches._Launcher):
    """A launch of a kernel of ours is counted, and not made."""

    current: ClassVar[list[Count]] = []  # Triton keeps launchers for good, so it is not theirs

    def __call__(self, *arguments: object) -> None:
        for count in self.current:
            count.launch()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS, metavar="NETWORK-xSCALE")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    compiler = os.environ.get("CC") or shutil.which("gcc") or "cc"
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        cache, libcuda = Path(scratch, "cache"), Path(scratch, "libcuda")
        libcuda.mkdir()
        offline_launches.make_libcuda(libcuda, compiler)
        offline_launches.prepare(cache, libcuda)
        driver = offline_launches._Driver(90)
        driver.launcher_cls = CountingLauncher
        triton.runtime.driver.set_active(driver)
        for network in options.networks:
            for optimizer in ("adam", "lamb"):
                count = count_step(network, optimizer)
                parts = {name: count.parts[name] for name in count.parts if name}
                row = {"network": network, "optimiser": optimizer, **parts, "all": sum(parts.values())}
                rows.append({**row, "casts": count.casts})
                print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    if options.csv is not None:
        write_figures(options.csv, rows)


if __name__ == "__main__":
    sys.exit(main())
