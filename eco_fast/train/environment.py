"""What a run computes on: device, precision and threads, resolved once and recorded with the run."""

import platform
from typing import Any

import torch

import eco_fast
from eco_fast.config import Config, RunConfig
from eco_fast.errors import UserError
from eco_fast.train.compiled import resolve_compile
from eco_fast.train.world import World


def resolve(config: Config, previous: Config | None = None) -> Config:
    """Replace `auto` device, precision and compilation and 0 threads by what will be used.

    A resumed run takes what its first part used (`previous`), so that the same bits come out.

    Raises:
        UserError: CUDA or a compiler is asked for and there is none.
    """
    run, before = config.run, previous.run if previous else None
    device: Any = run.device
    if device == "auto":
        device = before.device if before else device_type(device)
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("run.device is cuda but PyTorch sees no CUDA device; use --set run.device=cpu")
    precision: Any = run.precision
    if precision == "auto":
        precision = before.precision if before else ("bf16" if has_fast_bf16(device) else "fp32")
    threads = run.threads or (before.threads if before else torch.get_num_threads())
    compile_: Any = before.compile if before and run.compile == "auto" else run.compile
    compile_ = resolve_compile(compile_, config.student.name, device, precision)
    update = {"device": device, "precision": precision, "threads": threads, "compile": compile_}
    return config.model_copy(update={"run": run.model_copy(update=update)})


def has_fast_bf16(device: str) -> bool:
    """Whether the device multiplies bf16 in hardware: sm_80 and later, CPUs with avx512_bf16 or AMX."""
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def configure(run: RunConfig) -> None:
    """Set PyTorch's process-wide switches for a resolved run. Called by the commands, never at import."""
    torch.set_num_threads(run.threads)
    torch.backends.cuda.matmul.allow_tf32 = run.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = run.precision == "tf32"
    torch.backends.cudnn.benchmark = run.device == "cuda"


def device_type(choice: str) -> str:
    """What `auto` means here: "cuda" if there is one, else "cpu"."""
    return choice if choice != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def describe(run: RunConfig, world: World) -> dict[str, str]:
    """What the bits of a run depend on besides its configuration."""
    device = torch.cuda.get_device_name() if run.device == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {
        "eco-fast": eco_fast.__version__,
        "torch": str(torch.__version__),
        "machine": platform.machine(),
        "device": f"{run.device} {device}",
        "threads": str(run.threads),
        "processes": str(world.size),
    }
