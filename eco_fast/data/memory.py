"""What images take in memory, and what is free there."""

import os
import resource
from pathlib import Path

import torch
from torch import Tensor

_FULL = (  # where PyTorch has no class of its own for it: on a CPU, and what CUDA and its libraries take by themselves
    "can't allocate memory",
    "not enough memory",
    "CUDA error: out of memory",
    "STATUS_ALLOC_FAILED",
)
_NO_ENGINE = "unable to find an engine to execute this computation"


def resident_bytes(heights: Tensor, widths: Tensor, scale: int, *, centroids: bool) -> int:
    """What `resident` keeps on the device: HR and LR, and as much again for centroids. Sizes in HR pixels `(N,)`."""
    hr = int((heights * widths).sum()) * 3
    lr = int(((heights // scale) * (widths // scale)).sum()) * 3
    return (hr + lr) * (2 if centroids else 1)


def free_memory(device: torch.device | str) -> int:
    """Bytes that a process could still take on a device."""
    if torch.device(device).type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by PyTorch, and not in use
        return torch.cuda.mem_get_info(device)[0] + kept
    return min(_available_ram(), _left_in_container(), _left_of_limit())


def is_full(error: Exception) -> bool:
    """Whether it says that memory is full."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in _FULL)


def may_be_full(error: Exception) -> bool:
    """Whether it is what PyTorch says of a convolution that cuDNN cannot do.

    That is so where there is no memory for its work space, and where cuDNN has no such convolution at all.
    """
    return _NO_ENGINE in str(error)


def _available_ram() -> int:
    """What the kernel says is free or can be freed; without /proc, half of what there is."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _left_in_container(folder: Path = Path("/sys/fs/cgroup")) -> int:
    """What a container's limit leaves, page cache counted as free; a huge number where there is no limit."""
    try:
        limit, used = ((folder / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
    except OSError:
        return 2**62
    if limit == "max":
        return 2**62
    return int(limit) - int(used) + int(statistics.get("inactive_file", 0))


def _left_of_limit() -> int:
    """What `ulimit -v` leaves of addresses; a huge number where there is no limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return 2**62
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except OSError:
        return limit
    return limit - pages * os.sysconf("SC_PAGE_SIZE")
