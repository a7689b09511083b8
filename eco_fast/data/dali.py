"""The only door to NVIDIA DALI: loading it, running a pipeline, handing its results to PyTorch."""

import os
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from eco_fast.errors import UserError

_MAX_THREADS = 8  # of a pipeline: patches come faster than any network takes them long before


class Dali(NamedTuple):
    """The parts of DALI in use; its package is no dependency of the type checker."""

    Pipeline: Any
    fn: ModuleType
    types: ModuleType


def load_dali(source: str) -> Dali:
    """Import DALI for the source of that name.

    Raises:
        UserError: It is not installed, or does not load here.
    """
    try:
        from nvidia.dali import fn, types
        from nvidia.dali.pipeline import Pipeline
    except (ImportError, OSError) as error:  # OSError: a library of the package does not fit this platform
        reason = " ".join(str(error).split())
        raise UserError(
            f"data.source={source} needs NVIDIA DALI, which cannot be imported ({reason}); "
            "pip install nvidia-dali-cuda130, or use --set data.source=resident"
        ) from error
    return Dali(Pipeline, fn, types)


def has_dali() -> bool:
    """Whether `load_dali` succeeds."""
    try:
        load_dali("packed")
    except UserError:
        return False
    return True


def default_threads() -> int:
    """Threads of one pipeline: the cores this process may use, within reason."""
    return min(len(os.sched_getaffinity(0)), _MAX_THREADS)


def numbered(device: torch.device | str) -> torch.device:
    """The same device; a GPU with its number, since every thread has a current one of its own."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def next_tensors(pipeline: Any, device: torch.device) -> list[Tensor]:
    """Run a pipeline whose outputs lie on `device`; the results share DALI's memory, which is freed with them.

    On a GPU they are ordered after DALI's copies on the current stream: call this inside the stream that reads them.
    Their memory is freed once the whole device has come that far, which a thread of DALI waits for.

    Raises:
        RuntimeError: An operator failed.
    """
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    return [from_dlpack(output.as_tensor()) for output in pipeline.run(stream)]
