"""Fixtures that all tests share."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from eco_fast.cli import main
from eco_fast.models.spandrel_networks import library


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu") is not None:
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(scope="session")
def testdata() -> Path:
    """The folder of real images and weights named by ECO_FAST_TESTDATA; the test is skipped without it."""
    folder = os.environ.get("ECO_FAST_TESTDATA")
    if not folder:
        pytest.skip("ECO_FAST_TESTDATA does not name a folder of test data")
    return Path(folder)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores that a run makes by itself stay out of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed."""
    return np.random.default_rng(0)


def exit_code(*arguments: object) -> int:
    """That of the command line."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


def make_image(height: int, width: int, seed: int) -> np.ndarray:
    """A smooth random RGB image, uint8 (height, width, 3)."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (height // 6 + 2, width // 6 + 2, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of four small PNG images."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, (height, width) in enumerate([(64, 80), (72, 64), (96, 60), (64, 64)]):
        Image.fromarray(make_image(height, width, i)).save(folder / f"image{i}.png")
    return folder


@pytest.fixture(scope="session")
def dali() -> None:
    """The test is skipped where DALI is not installed."""
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")


@pytest.fixture
def source(request: pytest.FixtureRequest) -> str:
    """One of the values that a test is parametrised with, `indirect`; `files` is skipped where DALI is missing."""
    name: str = request.param
    if name == "files":
        request.getfixturevalue("dali")
    return name


@pytest.fixture(scope="session")
def spandrel() -> ModuleType:
    """The library; the test is skipped where it is not installed, and fails where it is and cannot be imported."""
    if importlib.util.find_spec("spandrel") is None:
        pytest.skip("spandrel is not installed")
    return library()
