"""Which source `auto` takes."""

from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from eco_fast.config import load_config
from eco_fast.data.flat import TrainingSet
from eco_fast.data.mapped import ArrayFiles
from eco_fast.display import Display
from eco_fast.errors import UserError
from eco_fast.train import inputs as module
from eco_fast.train.inputs import Images, load_images
from eco_fast.train.machine import resolve
from tests.train.test_online import Nearest


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """All four images of `photos` are more than fits beside training."""
    monkeypatch.setattr(module, "free_memory", lambda device: (2 << 30) + 50_000)


def loaded(images: Path, **settings: object) -> Images:
    flags = {"mode": "vanilla", "data.train": [str(images)], "data.patch": 8, "run.device": "cpu", **settings}
    config = resolve(load_config("edsr-tiny", flags=flags))
    return load_images(config, None, Display(Console(quiet=True)))


def test_what_fits_is_resident(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that hold no patch take no room."""
    assert isinstance(loaded(photos), TrainingSet)
    monkeypatch.setattr(module, "free_memory", lambda device: (2 << 30) + 100_000)
    Image.new("RGB", (12, 9000)).save(photos / "narrow.png")
    assert isinstance(loaded(photos), TrainingSet)


@pytest.mark.usefixtures("little_memory")
def test_what_does_not_fit_is_mapped(photos: Path) -> None:
    assert isinstance(loaded(photos), ArrayFiles)
    assert isinstance(loaded(photos, **{"data.source": "resident"}), TrainingSet)


def test_files_have_no_stored_centroids(photos: Path) -> None:
    flags = {"data.train": [str(photos)], "data.patch": 8, "data.source": "files", "teacher.mode": "cached"}
    config = resolve(load_config("edsr-tiny", flags=flags))
    with pytest.raises(UserError, match=r"no stored centroids; use --set teacher.mode=online"):
        load_images(config, Nearest(2), Display(Console(quiet=True)))


def test_the_old_name_of_a_source_is_named() -> None:
    with pytest.raises(UserError, match=r"data.source .*mapped"):
        load_config("edsr-tiny", ["data.source=packed"])
