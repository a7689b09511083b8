"""The launches of the proof and of training with default settings, without a GPU: our launch code on CPU tensors.

Triton compiles, and builds what launches, for a driver that only names a device; then nothing is launched. This goes
through the same code as on a GPU, so the keys of its cache are those that a GPU will ask for: types, alignments, sizes
of 1 and arguments that are None. What the kernels should have written is left as it was, so results mean nothing. For
processes of their own: the driver of a process is replaced.
"""

import ctypes
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from PIL import Image
from rich.console import Console
from torch import nn
from torch.overrides import TorchFunctionMode
from triton.backends.nvidia import driver as nvidia
from triton.runtime import build

from eco_fast.config import load_config
from eco_fast.display import Display
from eco_fast.proof import kernels
from eco_fast.proof.warm_kernels import settle_keys
from eco_fast.train.inputs import load_inputs
from eco_fast.train.loop import Loop
from eco_fast.train.machine import resolve
from eco_fast.train.run_folder import RunFolder
from eco_fast.train.update import make_update
from eco_kernels import bicubic_downsample, dispatch, downsample_mix, eco_loss_with_grad
from eco_kernels.offline import NamedDriver

PATCHES = (24, 48)
"""Sides in LR pixels; other multiples of 8 from 24 to 96 make the same launches, and so do all even batches."""

_CPU = torch.device("cpu")


def make_libcuda(folder: Path, compiler: str) -> None:
    """Write a `libcuda.so.1` that what launches can be linked and loaded with; each of its functions says "error".

    Raises:
        subprocess.CalledProcessError: The compiler failed.
    """
    text = "".join(path.read_text() for path in sorted(Path(nvidia.__file__).parent.glob("driver.*")))
    names = sorted(set(re.findall(r"\bcu[A-Z]\w*", text)))  # more than the functions: that does no harm
    source = folder / "libcuda.c"
    source.write_text("".join(f"int {name}(void) {{ return 999; }}\n" for name in names))
    command = [compiler, "-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1", "-o", "libcuda.so.1", source.name]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)


def prepare(cache_folder: Path, libcuda: Path) -> None:
    """Let this process fill a cache; `libcuda` is the folder of `make_libcuda`. Call it before any launch."""
    torch.set_num_threads(1)
    settle_keys()
    os.environ |= {"TRITON_CACHE_DIR": str(cache_folder), "TRITON_LIBCUDA_PATH": str(libcuda)}
    ctypes.CDLL(str(libcuda / "libcuda.so.1"))  # found by its name when what needs it is loaded


@cache
def launches() -> list[tuple[str, Callable[[], None]]]:
    """A name for each piece of work that launches kernels, and the work."""
    found: list[tuple[str, Callable[[], None]]] = [
        (case.name, partial(_as_on_a_gpu, partial(case.check, _CPU))) for case in kernels.cases()
    ]
    for scale, patch in product(kernels.SCALES, PATCHES):
        name = f"training x{scale}, patch {patch}"
        for mode, teacher in product(("eco", "alpha-sample"), ("cached", "online")):
            found.append((f"{name}, {mode}, {teacher}", partial(_train, scale, patch, mode, teacher)))
        found.append((f"{name}, NCHW", partial(_as_on_a_gpu, partial(_losses, scale * patch))))
        found.append((f"{name}, whole patches", partial(_as_on_a_gpu, partial(_whole_patches, scale, patch))))
    return found


def launch(architecture: int, number: int) -> None:
    """Compile all that a piece of work launches, into the cache."""
    triton.runtime.driver.set_active(_Driver(architecture))
    launches()[number][1]()


def platform_keys() -> tuple[str, str]:
    """What Triton finds this platform to be where the tool `file` is installed, and where it is not."""
    bits, _ = platform.architecture()
    known = ",".join((platform.machine(), platform.system(), bits))
    return f"{known},ELF", f"{known},"


class _Driver(NamedDriver):
    """With the real driver's launchers."""

    def __init__(self, architecture: int) -> None:
        super().__init__(architecture)
        self.utils, self.launcher_cls = _utils(), _Launcher


class _Launcher:
    """Triton's launcher of a kernel is made, a module in C before Triton 3.7, and never called."""

    def __init__(self, source: Any, metadata: Any) -> None:
        for _ in _platforms():
            nvidia.CudaLauncher(source, metadata)

    def __call__(self, *arguments: object) -> None:
        pass


@cache
def _utils() -> Any:
    """Triton's own module in C for CUDA, which says that there is memory enough, and loads no kernel."""
    for _ in _platforms():
        utils = nvidia.CudaUtils()
    utils.get_device_properties = lambda device: {"max_shared_mem": 2**31}
    utils.load_binary = lambda *arguments: (None, None, 0, 0, 1024)  # module, function, registers, spills, threads
    return utils


def _platforms() -> Iterator[None]:
    """Repeat the work for each key that modules in C are kept under, which is part of the keys of kernels."""
    for key in platform_keys():
        build.platform_key = lambda key=key: key
        yield


class _Copies(TorchFunctionMode):
    """`Tensor.to` makes a dense, aligned copy, as it does on the way to a GPU."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        return result.clone() if function is torch.Tensor.to else result


def _as_on_a_gpu(work: Callable[[], object]) -> None:
    """Tensors of the CPU are given to the kernels."""
    dispatch.forget_choices()
    try:
        with mock.patch.object(dispatch, "runs_kernels", lambda device: True), _Copies():
            work()
    finally:
        dispatch.forget_choices()


def _losses(side: int) -> None:
    """The loss of networks whose result is NCHW, as that of a pixel shuffle on a GPU is."""
    sr = torch.zeros(2, 3, side, side)
    image = torch.zeros(2, 3, side, side, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    for hr, centroid, alpha in (
        (image, None, torch.ones(())),
        (None, image, torch.ones(())),
        (image, image, torch.ones(())),
        (image, image, torch.ones(2)),
    ):
        eco_loss_with_grad(sr, hr, centroid, alpha, scale_factor=255.0)


def _whole_patches(scale: int, patch: int) -> None:
    """The bicubic of whole patches, neither cut nor turned, which the benchmark of the kernels measures."""
    lr, hr = (torch.zeros(2, side, side, 3, dtype=torch.uint8).permute(0, 3, 1, 2) for side in (patch, scale * patch))
    bicubic_downsample(hr, scale)
    downsample_mix(hr, lr, torch.ones(()), scale)


def _train(scale: int, patch: int, mode: str, teacher: str) -> None:
    """Steps of the training loop, one of each phase: with alpha 0, between 0 and 1, and 1."""
    with _loop(scale, patch, mode, teacher) as loop:
        _as_on_a_gpu(lambda: [loop.advance(step) for step in (0, 4, 6)])


@contextmanager
def _loop(scale: int, patch: int, mode: str, teacher: str) -> Iterator[Loop]:
    """A short student of a usual width on one grey image, and two patches a batch."""
    with tempfile.TemporaryDirectory() as name:
        folder, side = Path(name), scale * (patch + 8)
        (folder / "images").mkdir()
        Image.new("RGB", (side, side), (128, 128, 128)).save(folder / "images" / "image.png")
        flags: dict[str, object] = {
            "mode": mode,
            "scale": scale,
            "student.options": {"blocks": 1, "channels": 64},
            "teacher.file": "given",
            "teacher.mode": teacher,
            "data.train": [str(folder / "images")],
            "data.patch": patch,
            "data.batch": 2,
            "data.source": "resident",
            "data.store": str(folder / "store"),
            "run.steps": 8,
            "run.out": str(folder / "run"),
            "run.device": "cpu",
            "run.precision": "fp32",
            "run.compile": "off",
            "run.lanes": False,
        }
        config, display = resolve(load_config("edsr-tiny", flags=flags)), Display(Console(quiet=True))
        inputs = load_inputs(config, nn.Upsample(scale_factor=scale), display)
        loop = Loop(config, RunFolder(config.run.out, 1), inputs, make_update(config, inputs.student), display)
        try:
            yield loop
        finally:
            loop.close()
