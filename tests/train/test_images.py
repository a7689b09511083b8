"""Which source `auto` takes, and what is said where DALI would be needed and is not installed."""

import re
import sys
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from eco_fast.cli import main
from eco_fast.config import load_config
from eco_fast.data.make_store import prepare
from eco_fast.display import Display
from eco_fast.train import images as module
from eco_fast.train.images import load_images
from eco_fast.train.machine import resolve


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """All four images of `photos` are more than fits beside training."""
    monkeypatch.setattr(module, "free_memory", lambda device: (2 << 30) + 50_000)


@pytest.fixture
def no_dali(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [loaded for loaded in sys.modules if loaded.startswith("nvidia.dali")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)


def error_of_training(images: Path, out: Path, capsys: pytest.CaptureFixture[str], *settings: str) -> str:
    """One line, and no work done before it."""
    command = ["train", "edsr-tiny", "--mode", "vanilla", "--train", str(images), "--out", str(out), "--steps", "2"]
    for setting in ("data.patch=8", "run.device=cpu", *settings):
        command += ["--set", setting]
    with pytest.raises(SystemExit) as end:
        main(command)
    said = capsys.readouterr()
    assert end.value.code == 2 and said.err.count("\n") == 1
    return said.err


def refuse(*arguments: object, **options: object) -> None:
    pytest.fail("images were prepared")


SIZES = (
    r"images take 0 MB decoded, which beside 2,048 MB for training do not fit into the 2,048 MB that are free on cpu"
)


@pytest.mark.usefixtures("little_memory", "no_dali")
def test_images_that_do_not_fit_need_dali(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found in the headers of image files, or in a store."""
    prepare([photos], [2], tmp_path / "store")
    monkeypatch.setattr(module, "prepare", refuse)
    for images in (photos, tmp_path / "store"):
        error = error_of_training(images, tmp_path / "run", capsys)
        assert re.search(SIZES, error)
        assert all(
            mend in error for mend in ("pip install nvidia-dali-cuda130", "fewer images", "data.source=resident")
        )


@pytest.mark.usefixtures("no_dali")
def test_packed_is_refused_before_images_are_prepared(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "prepare", refuse)
    error = error_of_training(photos, tmp_path / "run", capsys, "data.source=packed")
    assert "data.source=packed needs NVIDIA DALI" in error


def is_resident(images: Path, **settings: object) -> bool:
    flags = {"mode": "vanilla", "data.train": [str(images)], "data.patch": 8, "run.device": "cpu", **settings}
    config = resolve(load_config("edsr-tiny", flags=flags))
    return load_images(config, None, Display(Console(quiet=True))).resident is not None


@pytest.mark.usefixtures("no_dali")
def test_without_dali_what_fits_is_resident(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that hold no patch take no room."""
    assert is_resident(photos)
    monkeypatch.setattr(module, "free_memory", lambda device: (2 << 30) + 100_000)
    Image.new("RGB", (12, 9000)).save(photos / "narrow.png")
    assert is_resident(photos)


@pytest.mark.usefixtures("little_memory")
def test_without_dali_resident_can_be_insisted_on(photos: Path, no_dali: None) -> None:
    assert is_resident(photos, **{"data.source": "resident"})


@pytest.mark.usefixtures("dali", "little_memory")
def test_with_dali_what_does_not_fit_is_packed(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no header is looked at before."""
    monkeypatch.setattr(module, "sizes_in_headers", refuse)
    assert not is_resident(photos)
