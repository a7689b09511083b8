"""Compiled kernels that travel: a Triton cache made without a GPU, packed, and unpacked where the GPU is.

Entries are found by Triton itself, its files, the kernels' source and the architecture, so they hold for one build of
Triton and one state of `eco_kernels`, in any folder. What launches a kernel, a module in C, holds for one Python too;
from Triton 3.8 on it also holds for the folders of Triton and of the NVIDIA driver, and is built again elsewhere, once.
"""

import hashlib
import io
import json
import lzma
import multiprocessing
import os
import platform
import re
import shutil
import sysconfig
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any, NamedTuple

import eco_kernels
from eco_fast.display import Display
from eco_fast.errors import UserError
from eco_fast.files import write, write_atomically

_KERNELS = Path(eco_kernels.__file__).parent
_MANIFEST = "manifest.json"
_ENTRY = re.compile(r"[A-Z2-7]+/(?!__grp__)[\w.-]+\.(cubin|json|so)")


class Manifest(NamedTuple):
    """What an archive holds, and what for."""

    triton: str  # version
    triton_key: str  # hash of Triton's own files
    sources: str  # hash of eco_kernels
    architectures: list[int]
    kernels: int
    python: str  # the suffix of its modules in C
    platform: str


class CacheCounter:
    """Counts which of our kernels Triton compiles in this process from now on, and finds in its cache instead.

    Make it before the first launch: it sees to it that the process asks for the keys of archives (`settle_keys`), and
    in one folder: torch.compile names another one (TRITON_CACHE_DIR) where none is named.
    """

    def __init__(self) -> None:
        self.hits = self.misses = 0
        if find_spec("triton") is not None:
            from triton import knobs

            settle_keys()
            os.environ.setdefault("TRITON_CACHE_DIR", knobs.cache.dir)
            self._before = knobs.compilation.listener
            knobs.compilation.listener = self._note

    def __str__(self) -> str:
        return f"kernels from the cache: {self.hits} hits, {self.misses} misses"

    def _note(self, *, src: Any, cache_hit: bool, **about: Any) -> None:
        if getattr(src, "fn", None) is not None and src.fn.__module__.startswith("eco_kernels"):  # torch.compile's not
            self.hits, self.misses = self.hits + cache_hit, self.misses + (not cache_hit)
        if self._before is not None:
            self._before(src=src, cache_hit=cache_hit, **about)


def settle_keys() -> None:
    """Make the keys of our kernels independent of what a process launches first; does nothing after the first launch.

    In Triton before 3.8 the hash of a kernel counts the constants of a function that it calls only if that function
    was hashed before, be it by another kernel. Here all are hashed in one order, callees first as they are written.
    """
    from triton import JITFunction

    operations = sorted(f"{path.parent.name}.{path.stem}" for path in _KERNELS.glob("*/*kernel.py"))
    for module in ("triton_common", "filter", *operations):
        for value in vars(import_module(f"eco_kernels.{module}")).values():
            if isinstance(value, JITFunction):  # under TRITON_INTERPRET=1 they are others
                value.cache_key  # noqa: B018  # computed once


def parse_architectures(names: Sequence[int | str]) -> list[int]:
    """Compute capabilities of names like 90, "90" or "sm_90", each once.

    Raises:
        UserError: One is not known, or there is none, or there is no Triton.
    """
    _need_triton()
    from eco_kernels.offline import ARCHITECTURES

    choice = ", ".join(f"sm_{each}" for each in ARCHITECTURES)
    known = {text: each for each in ARCHITECTURES for text in (str(each), f"sm_{each}")}
    for name in names:
        if str(name) not in known:
            raise UserError(f"{name} is not known; choose of {choice}")
    if not names:
        raise UserError(f"no architecture is named; choose of {choice}")
    return list(dict.fromkeys(known[str(name)] for name in names))


def warm_kernels(
    architectures: Sequence[int | str],
    archive: Path,
    *,
    wanted: Callable[[str], bool] = lambda name: True,
    display: Display | None = None,
) -> Manifest:
    """Compile what the proof and training launch, without a GPU, and write it as an archive for `unpack`.

    Args:
        architectures: As in `parse_architectures`.
        archive: The file that is written, .tar.xz.
        wanted: Of the names of `offline_launches.launches`.
        display: Where progress is shown.

    Raises:
        UserError: No Triton, no compiler for C, an unknown architecture, or a file that cannot be written.
        ValueError: No launch is wanted.
    """
    chosen = parse_architectures(architectures)
    compiler = _compiler()
    if os.environ.get("TRITON_INTERPRET"):
        raise UserError("nothing would be compiled; unset TRITON_INTERPRET")
    if archive.is_dir() or not os.access(archive.parent, os.W_OK):  # to be learnt now, and not after minutes
        raise UserError(f"cannot write {archive}; name a file in a folder that can be written")
    from eco_fast.proof.offline_launches import launches, make_libcuda

    numbers = [number for number, (name, _) in enumerate(launches()) if wanted(name)]
    if not numbers:
        raise ValueError("no launch is wanted")
    with tempfile.TemporaryDirectory() as scratch:
        cache, libcuda = Path(scratch, "cache"), Path(scratch, "libcuda")
        cache.mkdir()
        libcuda.mkdir()
        try:
            make_libcuda(libcuda, compiler)
        except CalledProcessError as error:
            said = " ".join(error.stderr.split())[-300:]
            raise UserError(f"{compiler} does not compile C ({said}); fix it, or unset CC") from None
        _compile_all(chosen, numbers, cache, libcuda, display or Display())
        manifest = _describe(chosen, kernels=sum(1 for _ in cache.glob("*/*.cubin")))
        content = _pack(cache, manifest)
    write(archive, content)
    return manifest


def unpack(archive: Path, folder: Path, *, display: Display | None = None) -> Manifest:
    """Put the kernels of an archive into a cache folder, which TRITON_CACHE_DIR has to name.

    Args:
        archive: Of `warm_kernels`. It holds machine code that will run: it has to come from a place that is trusted.
        folder: Is made; what is there already stays.
        display: Where it is said that this Triton, or these kernels, will find nothing of it.

    Raises:
        UserError: No such file, no archive of `warm_kernels`, no Triton, or a folder that cannot be written.
    """
    _need_triton()
    try:
        with tarfile.open(archive, "r:xz") as tar:
            first, *entries = tar.getmembers()
            if first.name != _MANIFEST or not first.isreg():
                raise ValueError(f"it does not begin with {_MANIFEST}")
            manifest = Manifest(**json.load(tar.extractfile(first) or io.BytesIO()))
            for entry in entries:
                if not (entry.isreg() and _ENTRY.fullmatch(entry.name)):
                    raise ValueError(f"{entry.name} is no file of a cache")
            _extract(tar, entries, folder)
        _make_groups(folder.resolve(), {entry.name for entry in entries})
    except (OSError, EOFError, ValueError, TypeError, tarfile.TarError, lzma.LZMAError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"cannot unpack {archive} into {folder}: {why}; name an archive of compiled kernels") from None
    _compare(manifest, _describe(manifest.architectures, manifest.kernels), archive, display or Display())
    return manifest


def _compare(made: Manifest, here: Manifest, archive: Path, display: Display) -> None:
    """Say which kernels of an archive will not be found by this Triton."""
    if made.triton_key != here.triton_key:
        display.line(f"{archive} is of another Triton ({made.triton}; here {here.triton}): none of it will be used")
    elif made.sources != here.sources:
        display.line(f"{archive} is of other sources of the kernels: those that changed will be compiled")
    elif made.python != here.python:
        display.line(f"{archive} is of another Python ({made.python}): what launches kernels will be built")


def _need_triton() -> None:
    if find_spec("triton") is None:
        raise UserError("Triton is not installed: pip install triton")


def _compiler() -> str:
    """The compiler for C that Triton takes, which needs Python's headers."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or shutil.which(compiler) is None:
        raise UserError(f"there is no compiler for C{f' called {compiler}' if compiler else ''}; install gcc")
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        raise UserError("Python's headers are missing; install python3-dev")
    return compiler


def _compile_all(architectures: list[int], numbers: list[int], cache: Path, libcuda: Path, display: Display) -> None:
    """Compile every launch for every architecture, on all cores. Processes are spawned: each has its own Triton."""
    from eco_fast.proof.offline_launches import launch, prepare

    tasks = list(product(architectures, numbers))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool = ProcessPoolExecutor(
        min(cores, len(tasks)), multiprocessing.get_context("spawn"), initializer=prepare, initargs=(cache, libcuda)
    )
    with pool, display.count("compiling kernels") as show:
        for done, _ in enumerate(pool.map(launch, *zip(*tasks, strict=True)), start=1):
            show(done, len(tasks))


def _describe(architectures: list[int], kernels: int) -> Manifest:
    """Describe what is compiled on this machine."""
    import triton
    from triton.runtime.cache import triton_key

    sources = hashlib.sha256()
    for file in sorted(_KERNELS.rglob("*.py")):
        sources.update(str(file.relative_to(_KERNELS)).encode() + b"\0" + file.read_bytes() + b"\0")
    return Manifest(
        triton=triton.__version__,
        triton_key=hashlib.sha256(triton_key().encode()).hexdigest(),
        sources=sources.hexdigest(),
        architectures=list(architectures),
        kernels=kernels,
        python=str(sysconfig.get_config_var("EXT_SUFFIX")),
        platform=platform.platform(),
    )


def _pack(cache: Path, manifest: Manifest) -> bytes:
    """Archive what a hit in the cache needs and no more; files of a kind lie together, which makes it small."""
    packed = io.BytesIO()
    names = (str(path.relative_to(cache)) for path in cache.glob("*/*"))
    with tarfile.open(fileobj=packed, mode="w:xz") as tar:
        _add(tar, _MANIFEST, json.dumps(manifest._asdict(), indent=2).encode())
        for name in sorted(filter(_ENTRY.fullmatch, names), key=lambda name: (Path(name).suffix, name)):
            _add(tar, name, (cache / name).read_bytes())
    return packed.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _extract(tar: tarfile.TarFile, entries: list[tarfile.TarInfo], folder: Path) -> None:
    """Extract files so that each appears whole: another process may read this cache."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unpack-") as scratch:
        tar.extractall(scratch, entries, filter="data")
        for entry in entries:
            (folder / entry.name).parent.mkdir(exist_ok=True)
            Path(scratch, entry.name).replace(folder / entry.name)


def _make_groups(folder: Path, names: set[str]) -> None:
    """Write the list of paths that makes a kernel of its files; it comes last, so that nothing incomplete is hit."""
    for cubin in (Path(name) for name in names if name.endswith(".cubin")):
        metadata = cubin.with_suffix(".json")
        if str(metadata) in names:
            group = {"child_paths": {file.name: str(folder / file) for file in (metadata, cubin)}}
            write_atomically(folder / cubin.parent / f"__grp__{metadata.name}", json.dumps(group).encode())
