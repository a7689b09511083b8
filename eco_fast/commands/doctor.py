"""`eco-fast doctor`: what is installed here, what is used for what, and what to install."""

import importlib.util
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

import eco_fast
from eco_fast.config import RunConfig
from eco_fast.console import plain_console
from eco_fast.data.dali import load_dali
from eco_fast.data.memory import free_memory
from eco_fast.errors import UserError
from eco_fast.extras import EXTRAS, install, version, versions
from eco_fast.train.machine import device_type, has_fast_bf16, missing_tool
from eco_fast.units import size
from eco_kernels.dispatch import runs_kernels

_WIDTH = 80  # columns, also in a pipe
_PACKAGES = ("torch", "triton", "numpy", "pillow", "pydantic", "safetensors", "matplotlib")


def diagnose() -> dict[str, Any]:
    """All that `doctor` knows, as plain data.

    `versions`, `device`, `uses` (what, why), `missing` (how to get what would be used), and `extras` (what each is for,
    its versions or how to get it).
    """
    device = device_type("auto")
    uses: dict[str, str] = {}
    missing: dict[str, str] = {}
    checks: dict[str, Callable[[str], tuple[str, str | None]]] = {
        "kernels": _kernels,
        "data path": _dali,
        "compile": _compile,
        "precision": _precision,
        "lanes": _lanes,
        "CUDA graph": _graph,
    }
    for part, look in checks.items():
        uses[part], fix = look(device)
        if fix is not None:
            missing[part] = fix
    extras = {name: _extra(name) for name in EXTRAS}
    return {"versions": _versions(), "device": _device(device), "uses": uses, "missing": missing, "extras": extras}


def doctor(*, as_json: bool = False) -> None:
    """Print `diagnose`, as tables or as JSON."""
    found = diagnose()
    if as_json:
        print(json.dumps(found, indent=2))
        return
    console = plain_console()
    for title, rows in (
        ("Versions", found["versions"]),
        ("Device", found["device"]),
        ("Used for", found["uses"]),
        ("Not here", found["missing"]),
        ("Extras", found["extras"]),
    ):
        table = Table(title=title, title_justify="left", show_header=False)
        for name, value in rows.items():
            table.add_row(name, str(value))
        if rows:
            console.print(table, width=min(console.width, _WIDTH))


def processor() -> str:
    """The name of the CPU."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    versions = {"eco-fast": eco_fast.__version__, "Python": platform.python_version()}
    versions |= {name: version(name) or "not installed" for name in _PACKAGES}
    return versions | {"torch": str(torch.__version__)}  # with the build, which the package's metadata may leave out


def _extra(name: str) -> str:
    """What an extra is for, with the versions of its packages or how to get them."""
    found = versions(name)
    if None in found.values():
        return f"{EXTRAS[name].purpose}: {install(name)}"
    return f"{EXTRAS[name].purpose}: {', '.join(f'{package} {number}' for package, number in found.items())}"


def _device(kind: str) -> dict[str, str]:
    if kind == "cuda":
        major, minor = torch.cuda.get_device_capability()
        found = {"GPU": f"{torch.cuda.get_device_name()} (sm_{major}{minor})", "GPUs": str(torch.cuda.device_count())}
    else:
        why = "PyTorch is a CPU build" if torch.version.cuda is None else "PyTorch sees no CUDA device"
        found = {"GPU": f"none: {why}"}
    capability = torch.backends.cpu.get_cpu_capability()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        **found,
        "CPU": f"{processor()}, {cores} cores, {capability}",
        "free memory": size(free_memory(kind)),
    }


def _kernels(device: str) -> tuple[str, str | None]:
    try:
        kernels = runs_kernels(torch.device(device))
    except ValueError as error:
        return "nothing", str(error)
    if kernels:
        return "Triton kernels", None
    wanted = device == "cuda" and importlib.util.find_spec("triton") is None
    reason = "no GPU of compute capability 8.0 or more" if not wanted else "Triton is not installed"
    return f"plain PyTorch: {reason}", "pip install triton" if wanted else None


def _dali(device: str) -> tuple[str, str | None]:
    try:
        load_dali("files")
    except UserError as error:
        installed = versions("dali")["nvidia-dali-cuda130"] is not None
        return "images are decoded by Pillow", str(error) if installed else None  # without it: see the extras
    return "DALI decodes images", None


def _compile(device: str) -> tuple[str, str | None]:
    missing = missing_tool()
    if missing is not None:
        return f"off: {missing} is missing", f"install {missing}"
    return ("on" if device == "cuda" else "off: no faster on a CPU"), None


def _precision(device: str) -> tuple[str, str | None]:
    return ("bf16: faster here than fp32" if has_fast_bf16(device) else "fp32: bf16 is not faster here"), None


def _lanes(device: str) -> tuple[str, str | None]:
    on = "batches are made one step ahead" if RunConfig().lanes else "off"
    return (f"{on}, on a stream of their own" if device == "cuda" else f"{on}; a CPU has no streams"), None


def _graph(device: str) -> tuple[str, str | None]:
    return ("on: an update is one launch" if device == "cuda" else "left out: only CUDA devices have graphs"), None
