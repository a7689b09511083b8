"""A cache of compiled kernels that is made in one folder is hit in another, by a copy of the project."""

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from rich.console import Console

from eco_fast.display import Display
from eco_fast.errors import UserError

pytest.importorskip("triton")
if shutil.which("gcc") is None and shutil.which("clang") is None:
    pytest.skip("there is no compiler for C", allow_module_level=True)

from eco_fast.proof.warm_kernels import parse_architectures, unpack, warm_kernels

ROOT = Path(__file__).parents[2]
WANTED = ("gather-uint8-i64", "loss l1-float32-uint8-uint8")
COUNT = """
import sys
from pathlib import Path
from eco_fast.proof.offline_launches import _as_on_a_gpu, launch, launches, make_libcuda, prepare
from eco_fast.proof.warm_kernels import CacheCounter, _compiler
cache, libcuda = map(Path, sys.argv[1:3])
libcuda.mkdir()
make_libcuda(libcuda, _compiler())
prepare(cache, libcuda)
counter = CacheCounter()
for number, (name, _) in enumerate(launches()):
    if name in sys.argv[3:]:
        launch(90, number)
if "benchmark" in sys.argv:
    import torch
    from kernel_speed import cases
    for case in cases(16, torch.device("cpu")):
        _as_on_a_gpu(case.call)
print(counter.hits, counter.misses)
"""
QUIET = Display(Console(quiet=True))


def copy_of_the_code(folder: Path) -> Path:
    for package in ("eco_fast", "kernels", "benchmarks"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def hits_and_misses(code: Path, cache: Path, libcuda: Path, names: Iterable[str] = WANTED) -> tuple[int, int]:
    """How many kernels a process that launches `names` finds in the cache, and how many it compiles."""
    folders = (str(code / name) for name in (".", "kernels", "benchmarks"))
    path = os.pathsep.join(filter(None, (*folders, os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-c", COUNT, str(cache), str(libcuda), *names]
    result = subprocess.run(command, cwd=code, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    hits, misses = map(int, result.stdout.split())
    return hits, misses


@pytest.mark.slow
def test_another_process_in_another_folder_hits(tmp_path: Path) -> None:
    archive = tmp_path / "kernels.tar.xz"
    made = warm_kernels(["sm_90"], archive, wanted=WANTED.__contains__, display=QUIET)
    assert made.kernels == 2 and made.architectures == [90]
    code = copy_of_the_code(tmp_path / "copy")
    assert unpack(archive, tmp_path / "cache", display=QUIET) == made
    assert hits_and_misses(code, tmp_path / "cache", tmp_path / "libcuda") == (made.kernels, 0)
    assert hits_and_misses(code, tmp_path / "empty", tmp_path / "libcuda2") == (0, made.kernels)
    kernel = code / "kernels" / "eco_kernels" / "loss" / "kernel.py"
    kernel.write_text(kernel.read_text().replace("sample_weight = 1.0", "sample_weight = 2.0"))
    hits, misses = hits_and_misses(code, tmp_path / "cache", tmp_path / "libcuda3")
    assert (hits, misses) == (1, 1)  # the other kernel is as it was


@pytest.mark.slow
def test_the_benchmark_of_the_kernels_compiles_none(tmp_path: Path) -> None:
    archive, cache = tmp_path / "kernels.tar.xz", tmp_path / "cache"
    training, patches = "training x4, patch 48, eco, cached", "training x4, patch 48, whole patches"
    names = (training, patches, "loss l1-bfloat16-uint8-uint8")
    warm_kernels([90], archive, wanted=names.__contains__, display=QUIET)
    unpack(archive, cache, display=QUIET)
    hits, misses = hits_and_misses(ROOT, cache, tmp_path / "libcuda", [patches, "benchmark"])
    assert (hits, misses) == (7, 0)  # gather, mix, two of the bicubic, the bicubic with a mix, two of the loss


@pytest.mark.parametrize("names", [["sm_91"], ["90", "hopper"], []])
def test_unknown_architectures_are_named(names: list[str]) -> None:
    with pytest.raises(UserError, match=r"choose of sm_80, "):
        parse_architectures(names)


def test_names_of_architectures() -> None:
    assert parse_architectures(["sm_90", 80, "90"]) == [90, 80]


def test_an_archive_that_cannot_be_written_is_named_before_anything_is_compiled(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*name a file in a folder"):
        warm_kernels([90], tmp_path / "missing" / "kernels.tar.xz", display=QUIET)


def test_other_archives_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x" * 100)
    archive = tmp_path / "other.tar.xz"
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(tmp_path / "file", "../../file")
    for wrong in (tmp_path / "file", archive, tmp_path / "missing"):
        with pytest.raises(UserError, match="name an archive of compiled kernels"):
            unpack(wrong, tmp_path / "cache", display=QUIET)
    assert not (tmp_path / "cache").exists()
