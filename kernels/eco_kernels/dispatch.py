"""Which implementation computes: Triton kernels on NVIDIA GPUs, plain PyTorch elsewhere.

The environment variable ECO_KERNELS decides, read once per device:

- `auto`, the default: the kernels on GPUs of compute capability 8.0 and up where Triton can be imported.
- `reference`: plain PyTorch everywhere; no Triton is imported.
- `triton`: the kernels everywhere; for tensors on the CPU in Triton's interpreter, under TRITON_INTERPRET=1.
"""

import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from types import ModuleType

import torch

from eco_kernels import cpu

CHOICES = ("auto", "reference", "triton")


@cache
def implementation(device: torch.device) -> ModuleType:
    """The module that computes on `device`: `eco_kernels.gpu` or `eco_kernels.cpu`.

    Raises:
        ValueError: ECO_KERNELS has another value, or asks for kernels where there can be none.
    """
    choice = os.environ.get("ECO_KERNELS", "auto")
    if choice not in CHOICES:
        raise ValueError(f"ECO_KERNELS is {choice!r}; it must be one of {', '.join(CHOICES)}")
    if choice == "reference" or (choice == "auto" and not _has_kernels(device)):
        return cpu
    if importlib.util.find_spec("triton") is None:
        raise ValueError("ECO_KERNELS is 'triton' and Triton is not installed: pip install triton")
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"ECO_KERNELS is 'triton' and a tensor is on {device}: that needs TRITON_INTERPRET=1")
    from eco_kernels import gpu

    return gpu


def on(device: torch.device) -> AbstractContextManager[object]:
    """Make `device` the current one: Triton launches there, wherever its arguments lie."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _has_kernels(device: torch.device) -> bool:
    return (
        device.type == "cuda"
        and torch.version.cuda is not None
        and importlib.util.find_spec("triton") is not None
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )
