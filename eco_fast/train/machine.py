"""What a run computes on: device, precision, threads and compiler, resolved once and recorded with the run."""

import os
import platform
import re
import shutil
import subprocess
import sysconfig
import time
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

import torch

import eco_fast
from eco_fast.config import Config, RunConfig
from eco_fast.errors import UserError
from eco_fast.train.world import World
from eco_fast.units import counted
from eco_kernels.dispatch import runs_kernels

_WORTH_IT = 1.1  # times as fast bf16 has to be

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions that run under autocast; `fp32` and `tf32` do not."""


def resolve(config: Config, previous: Config | None = None) -> Config:
    """Replace `auto` device, precisions, compilation and graph and 0 threads by what will be used.

    A resumed run takes what its first part used (`previous`), so that the same bits come out. The teacher's precision
    is settled later, where its store is seen; here only that of the first part is taken.

    Raises:
        UserError: CUDA or a compiler is asked for and there is none.
    """
    run, before = config.run, previous.run if previous else None
    device: Any = run.device
    if device == "auto":
        device = before.device if before else device_type(device)
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("run.device is cuda but PyTorch sees no CUDA device; use --device cpu")
    refuse_unusable_kernels(device)
    precision: Any = run.precision
    if precision == "auto":
        precision = before.precision if before else ("bf16" if has_fast_bf16(device) else "fp32")
    threads = run.threads or (before.threads if before else torch.get_num_threads())
    compile_: Any = before.compile if before and run.compile == "auto" else run.compile
    compile_ = resolve_compile(compile_, device)
    graph: Any = device == "cuda" if run.graph == "auto" else run.graph
    if before and run.graph == "auto":
        graph = before.graph
    valid: Any = run.valid_precision
    if valid == "auto":
        valid = before.valid_precision if before else fast_on_gpu(device) if precision in AUTOCAST else "fp32"
    teacher: Any = config.teacher.precision
    if previous and teacher == "auto":
        teacher = previous.teacher.precision
    update = {"device": device, "precision": precision, "threads": threads, "compile": compile_, "graph": graph}
    return config.model_copy(
        update={
            "run": run.model_copy(update=update | {"valid_precision": valid}),
            "teacher": config.teacher.model_copy(update={"precision": teacher}),
        }
    )


def autocast(precision: str, device_type: str) -> AbstractContextManager[object]:
    """Autocast for a precision; does nothing for `fp32` and `tf32`."""
    return torch.autocast(device_type, AUTOCAST.get(precision), enabled=precision in AUTOCAST)


def unsearched() -> AbstractContextManager[object]:
    """cuDNN does not search for its best algorithms: the shapes inside do not come again."""
    cudnn = torch.backends.cudnn
    return cudnn.flags(cudnn.enabled, False, cudnn.benchmark_limit, cudnn.deterministic, cudnn.allow_tf32)


def configure(run: RunConfig) -> None:
    """Set PyTorch's process-wide switches for a resolved run. Called by the commands, never at import."""
    torch.set_num_threads(run.threads)
    torch.backends.cuda.matmul.allow_tf32 = run.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = run.precision == "tf32"
    torch.backends.cudnn.benchmark = run.device == "cuda"


def describe(run: RunConfig, world: World) -> dict[str, str]:
    """What the bits of a run depend on besides its configuration."""
    device = torch.cuda.get_device_name() if run.device == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {
        **versions(),
        "machine": platform.machine(),
        "device": f"{run.device} {device}",
        "threads": str(run.threads),
        "processes": str(world.size),
    }


def versions() -> dict[str, str]:
    """Of the programs that a run's numbers come from."""
    return {"eco-fast": eco_fast.__version__, "torch": str(torch.__version__)}


def device_type(choice: str) -> str:
    """What `auto` means here: "cuda" if there is one, else "cpu"."""
    return choice if choice != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def usable_device(choice: str) -> str:
    """The device that a person names, `auto` settled, once it is known that networks can compute there.

    Args:
        choice: auto, cpu, cuda, or cuda:1 for the second GPU.

    Raises:
        UserError: It names no device, or one that is not here; or `eco_kernels` cannot compute there.
    """
    device = device_type(choice)
    named = re.fullmatch(r"cpu|cuda(?::(\d+))?", device)
    if named is None:
        raise UserError(f"--device {choice} is no device; take auto, cpu, cuda, or cuda:1 for the second GPU")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device != "cpu" and int(named[1] or 0) >= gpus:
        seen = counted(gpus, "GPU") if gpus else "no GPU"
        raise UserError(f"--device {choice}: PyTorch sees {seen}; take {f'cuda:{gpus - 1}' if gpus else 'cpu'}")
    refuse_unusable_kernels(device)
    return device


def use_threads(count: int | None) -> None:
    """Let PyTorch compute with so many CPU threads; None leaves it its own choice.

    Raises:
        UserError: There are fewer than one.
    """
    if count is not None and count < 1:
        raise UserError(f"--threads {count} is too few; give 1 or more, or leave it out")
    if count is not None:
        torch.set_num_threads(count)


def fast_on_gpu(device: str) -> str:
    """The precision of a network that only answers: bf16 on GPUs that are fast at it; fp32 elsewhere.

    A CPU keeps to fp32 whether or not it has bf16, so that all CPUs answer alike.
    """
    return "bf16" if device == "cuda" and has_fast_bf16(device) else "fp32"


def refuse_unusable_kernels(device: str) -> None:
    """Find out before any work is done whether `eco_kernels` can compute on a device.

    Raises:
        UserError: It cannot: ECO_KERNELS is wrong, or Triton lacks something.
    """
    try:
        runs_kernels(torch.device(device))
    except ValueError as error:
        raise UserError(str(error)) from error


@cache
def has_fast_bf16(device: str) -> bool:
    """Whether a network trains faster in bf16 than in fp32: on GPUs of sm_80 and later.

    On a CPU with instructions for it a trial of some 0.1 s decides: with AMX, and on AMD's, bf16 is several times as
    fast; on Intel's without AMX half as fast.
    """
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return False
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # what else runs here disturbs that least
    try:
        rounds = [(_seconds(torch.bfloat16), _seconds(torch.float32)) for _ in range(8)]
    finally:
        torch.set_num_threads(threads)
    bf16, fp32 = map(min, zip(*rounds, strict=True))
    return _WORTH_IT * bf16 < fp32


def _seconds(dtype: torch.dtype) -> float:
    """Forward and backward pass of a convolution as networks have them, on the CPU."""
    x = torch.zeros((4, 64, 32, 32), dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.zeros((64, 64, 3, 3), dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
    started = time.perf_counter()
    y = torch.nn.functional.conv2d(x, weight, padding=1)
    torch.autograd.grad(y, (x, weight), torch.ones_like(y))
    return time.perf_counter() - started


def resolve_compile(choice: str, device_type: str) -> str:
    """What `auto` means here: on for CUDA where there is a compiler; on a CPU it trains no faster.

    Args:
        choice: auto, off, default or max-autotune.
        device_type: "cuda" or "cpu".

    Raises:
        UserError: Compilation is asked for and cannot be had.
    """
    missing = None if choice == "off" else missing_tool()
    if choice == "auto":
        return "default" if device_type == "cuda" and missing is None else "off"
    if missing is not None:
        raise UserError(f"run.compile={choice} needs {missing}; install it, or use --set run.compile=off")
    return choice


def answer(tool: str, *arguments: str) -> str:
    """The first line that a tool prints, "none" if it is missing, fails, or takes half a minute."""
    if shutil.which(tool) is None:
        return "none"
    try:
        result = subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        return "none"
    lines = result.stdout.strip().splitlines()
    return lines[0].strip() if result.returncode == 0 and lines else "none"


def commit_of(folder: Path) -> str:
    """The commit that a folder is at, marked where files were changed since; "none" where there is none."""
    return answer("git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


def missing_tool() -> str | None:
    """What torch.compile lacks on this machine, None if it has all it needs."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"a C++ compiler ({compiler})"
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        return "Python's headers (python3-dev)"
    return None
