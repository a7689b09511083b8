"""torch.compile for the networks of a run: one callable each, static shapes, one graph."""

import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from eco_fast.errors import UserError

Forward = Callable[[Tensor], Tensor]

# CUDA graphs are captured by the run itself: those of the compiler share memory between networks that run side by side.
_MODES = {"default": "default", "max-autotune": "max-autotune-no-cudagraphs"}

PAYS_ON_CPU = frozenset({("edsr-baseline", "bf16")})
"""Networks and precisions that a compiled step trains faster on the CPU, as benchmarks/test_step.py measures it."""


def missing_tool() -> str | None:
    """What torch.compile lacks on this machine, None if it has all it needs."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"a C++ compiler ({compiler})"
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        return "Python's headers (python3-dev)"
    return None


def why_off(network: str, device_type: str, precision: str) -> str | None:
    """Why `auto` compiles nothing here; None where it does."""
    if device_type != "cuda" and (network, precision) not in PAYS_ON_CPU:
        return "it was not measured to be faster on a CPU"
    missing = missing_tool()
    return None if missing is None else f"it needs {missing}"


def resolve_compile(choice: str, network: str, device_type: str, precision: str) -> str:
    """What `auto` means here: on for CUDA, on the CPU where it was measured to pay; off without a compiler.

    Args:
        choice: auto, off, default or max-autotune.
        network: Its name.
        device_type: "cuda" or "cpu".
        precision: Resolved.

    Raises:
        UserError: Compilation is asked for and cannot be had.
    """
    if choice == "auto":
        return "default" if why_off(network, device_type, precision) is None else "off"
    missing = missing_tool() if choice != "off" else None
    if missing is not None:
        raise UserError(f"run.compile={choice} needs {missing}; install it, or use --set run.compile=off")
    return choice


def compiled(network: nn.Module, choice: str) -> Forward:
    """The network as a callable, compiled unless `choice` is "off".

    The network itself stays as it is: evaluation calls it uncompiled, with images of any size, and cannot disturb the
    compiled one.
    """
    if choice == "off":
        return network
    return torch.compile(network, mode=_MODES[choice], dynamic=False, fullgraph=True)
