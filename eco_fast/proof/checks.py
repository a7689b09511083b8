"""All checks of the proof: those that need no GPU, those of the GPU, and the benchmarks."""

import csv
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from eco_fast.bench import BENCHMARKS, SUITES, run_all
from eco_fast.proof import kernels, training
from eco_fast.proof.outcome import Evidence, NotRun

_INTERPRETED = 600  # seconds that the kernels may take in Triton's interpreter


class Check(NamedTuple):
    """Something to be shown."""

    name: str
    device: str
    run: Callable[[], Evidence]


def offline_checks(out: Path, scratch: Path) -> Iterator[Check]:
    """What can be shown without a GPU."""
    yield Check("every specialisation has a call", "cpu", _coverage)
    yield Check("operations in plain PyTorch against float64", "cpu", lambda: kernels.parity(torch.device("cpu")))
    yield Check("kernels in Triton's interpreter against float64", "cpu", _interpreted)
    yield Check("compiled code of the kernels: no spills", "cpu", partial(_compiled_code, out / "compile_report.csv"))
    runs = training.Training(scratch / "cpu", "cpu")
    for name, check in training.CHECKS.items():
        yield Check(f"training: {name}", "cpu", partial(check, runs))


def gpu_checks(scratch: Path) -> Iterator[Check]:
    """What only a GPU shows. Without one each of them says that it did not run."""
    yield Check("kernels on the GPU against float64", "cuda", with_gpu(_kernels_on_gpu))
    runs = training.Training(scratch / "cuda", "cuda")
    for name, check in training.CHECKS.items():
        yield Check(f"training: {name}", "cuda", with_gpu(partial(check, runs)))


def benchmarks(out: Path) -> dict[str, str]:
    """Run all suites on a GPU; suite -> "ran", or "skipped: why", or "failed: why"."""
    if not torch.cuda.is_available():
        return dict.fromkeys(SUITES, f"skipped: {why_no_gpu()}; on the CPU: eco-fast bench all")
    return run_all(out, quick=False)


def with_gpu(check: Callable[[], Evidence]) -> Callable[[], Evidence]:
    """The check, which is not made where there is no GPU."""

    def checked() -> Evidence:
        if not torch.cuda.is_available():
            raise NotRun(why_no_gpu())
        return check()

    return checked


def why_no_gpu() -> str:
    """Why PyTorch sees none."""
    return "PyTorch is a CPU build" if torch.version.cuda is None else "PyTorch sees no CUDA device"


def _kernels_on_gpu() -> Evidence:
    device = torch.device("cuda")
    kernels.kernels_must_run(device)
    return kernels.parity(device)


def _need_triton() -> None:
    if find_spec("triton") is None:
        raise NotRun("Triton is not installed: pip install triton")


def _coverage() -> Evidence:
    _need_triton()
    from eco_kernels.offline import specialisations

    return kernels.coverage(frozenset(kernel.name for kernel in specialisations()))


def _interpreted() -> Evidence:
    """The kernels of training by default, in a process of its own: Triton's interpreter is chosen at import."""
    _need_triton()
    from eco_kernels.offline import DEFAULTS

    names = sorted(DEFAULTS - {"l1-bfloat16-uint8-uint8"})  # the interpreter rounds to bf16 in a way of its own
    result = subprocess.run(
        [sys.executable, "-m", "eco_fast.proof.kernels", *names],
        env={**os.environ, "TRITON_INTERPRET": "1", "ECO_KERNELS": "triton", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=_INTERPRETED,
        check=False,
    )
    if result.returncode != 0:
        return Evidence(0, (f"the interpreter ended with {result.returncode}: {result.stderr.strip()[-300:]}",))
    found = json.loads(result.stdout)
    return Evidence(found["compared"], tuple(found["faults"]), found["detail"])


def _compiled_code(file: Path) -> Evidence:
    """What the assembler makes of the kernels of training by default, on all architectures."""
    _need_triton()
    if not BENCHMARKS.is_dir():
        raise NotRun(f"{BENCHMARKS} is missing: the report needs the source tree")
    with _importable(BENCHMARKS):
        rows = list(importlib.import_module("compile_report").rows(everything=False))
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    faults = tuple(
        f"{row['specialisation']} on {row['arch']} spills {row['spill_bytes']} bytes"
        for row in rows
        if row["spill_bytes"] or row["stack_bytes"]
    )
    most = max(int(str(row["registers"])) for row in rows)
    return Evidence(len(rows), faults, f"{len(rows)} compilations, at most {most} registers")


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.append(str(folder))  # by name, and not by file, so that worker processes find it too
    try:
        yield
    finally:
        sys.path.remove(str(folder))
