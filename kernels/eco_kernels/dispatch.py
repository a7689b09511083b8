"""How an operation is called: as a PyTorch operator in graphs, by Triton kernels on NVIDIA GPUs, else by plain PyTorch.

The environment variable ECO_KERNELS decides, read once per device (see `forget_choices`):

- `auto`, the default: the kernels on GPUs of compute capability 8.0 and up where Triton can be imported.
- `reference`: plain PyTorch everywhere; no Triton is imported.
- `triton`: the kernels everywhere; for tensors on the CPU in Triton's interpreter, under TRITON_INTERPRET=1.
"""

import importlib.util
import inspect
import os
import subprocess
from collections.abc import Callable
from functools import cache, wraps
from importlib import import_module
from types import ModuleType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Tensor])

CHOICES = ("auto", "reference", "triton")


def operation(fake: Callable[[dict[str, Any]], Tensor]) -> Callable[[Function], Function]:
    """Registers a public function as an operator of its name, for users who compile it into graphs of their own.

    Called eagerly it goes straight to its implementation; under `torch.compile` and `torch.export` it becomes one node,
    `torch.ops.eco_kernels.<name>`.

    Args:
        fake: An empty tensor like the result, from the arguments by their names.
    """

    def register(function: Function) -> Function:
        operator = torch.library.custom_op(f"eco_kernels::{function.__name__}", function, mutates_args=())
        signature = inspect.signature(function)

        @operator.register_fake
        def empty(*args: Any, **kwargs: Any) -> Tensor:
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            return fake(given.arguments)

        @wraps(function)
        def public(*args: Any, **kwargs: Any) -> Tensor:
            return operator(*args, **kwargs) if torch.compiler.is_compiling() else function(*args, **kwargs)

        return cast(Function, public)

    return register


@cache
def implementation(package: str, device: torch.device) -> ModuleType:
    """The module of an operation that computes on `device`: `kernel` or `cpu` of its package.

    Raises:
        ValueError: As `runs_kernels`.
    """
    return import_module(f"{package}.{'kernel' if runs_kernels(device) else 'cpu'}")


@cache
def runs_kernels(device: torch.device) -> bool:
    """Whether Triton kernels compute on `device`.

    Raises:
        ValueError: ECO_KERNELS has another value, or asks for kernels where there can be none; or there is no C
            compiler, which Triton needs on a GPU.
    """
    choice = os.environ.get("ECO_KERNELS", "auto")
    if choice not in CHOICES:
        raise ValueError(f"ECO_KERNELS is {choice!r}; it must be one of {', '.join(CHOICES)}")
    if choice == "reference" or (choice == "auto" and not _has_kernels(device)):
        return False
    if importlib.util.find_spec("triton") is None:
        raise ValueError("ECO_KERNELS is 'triton' and Triton is not installed: pip install triton")
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"ECO_KERNELS is 'triton' and a tensor is on {device}: that needs TRITON_INTERPRET=1")
    if device.type == "cuda":
        _load_driver()
    return True


def forget_choices() -> None:
    """Look at ECO_KERNELS again in the next call."""
    runs_kernels.cache_clear()
    implementation.cache_clear()


def _load_driver() -> None:
    """Load what Triton launches kernels by. A C compiler makes that, once; Triton's cache keeps it."""
    from triton.runtime import driver

    try:
        _ = driver.active.utils
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        if isinstance(error, RuntimeError) and "C compiler" not in str(error):
            raise
        called = error.cmd[0] if isinstance(error, subprocess.CalledProcessError) else None
        reason = f"{called} failed" if called else str(error).partition(". ")[0]
        mend = "install gcc and Python's headers (python3-dev), or set ECO_KERNELS=reference"
        raise ValueError(f"Triton cannot make its launcher ({reason}); {mend}") from error


def _has_kernels(device: torch.device) -> bool:
    return (
        device.type == "cuda"
        and torch.version.cuda is not None
        and importlib.util.find_spec("triton") is not None
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )
