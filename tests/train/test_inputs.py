"""Which source and which centroids `auto` takes."""

from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from eco_fast.config import load_config
from eco_fast.data.flat import TrainingSet
from eco_fast.data.make_store import prepare
from eco_fast.data.mapped import ArrayFiles
from eco_fast.display import Display
from eco_fast.errors import UserError
from eco_fast.train import inputs as module
from eco_fast.train.inputs import Images, Inputs, load_images, load_inputs
from eco_fast.train.machine import resolve
from eco_fast.train.teacher import freeze, store_teacher, teacher_identity
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
    with pytest.raises(UserError, match=r"data\.source=packed: take one of auto, resident, mapped, files"):
        load_config("edsr-tiny", ["data.source=packed"])


class TestStoredInBf16:
    """A store holds a teacher's centroids in bf16, and this is a CPU, which would make them in fp32."""

    teacher = freeze(Nearest(2))

    @pytest.fixture
    def store(self, photos: Path, tmp_path: Path) -> Path:
        prepare([photos], [2], tmp_path / "store", teacher=store_teacher(self.teacher, 2, "bf16", "cpu"))
        return tmp_path / "store"

    def inputs(self, images: Path, store: Path, capsys: pytest.CaptureFixture[str], **settings: object) -> Inputs:
        flags = {"data.train": [str(images)], "data.store": str(store), "data.patch": 8, "run.device": "cpu"}
        flags |= {"student.options": {"blocks": 1, "channels": 4}, "data.source": "mapped", **settings}
        capsys.readouterr()
        return load_inputs(resolve(load_config("edsr-tiny", flags=flags)), self.teacher, Display())

    def assert_uses(self, inputs: Inputs, precision: str) -> None:
        assert inputs.config.teacher.precision == precision
        assert isinstance(inputs.images, ArrayFiles) and inputs.images.centroid is not None
        assert teacher_identity(self.teacher, precision) in inputs.images.centroid[0]

    @pytest.mark.parametrize("named", [False, True])
    def test_auto(self, photos: Path, store: Path, named: bool, capsys: pytest.CaptureFixture[str]) -> None:
        self.assert_uses(self.inputs(store if named else photos, store, capsys), "bf16")
        assert f"centroids in bf16, rounded to 8 bit; {store} holds them\n" in capsys.readouterr().out

    def test_another_precision_by_name(self, photos: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(UserError, match=r"no fp32 centroids .* add them: .* --precision fp32 --out "):
            self.inputs(store, store, capsys, **{"teacher.precision": "fp32"})
        self.assert_uses(self.inputs(photos, store, capsys, **{"teacher.precision": "fp32"}), "fp32")
        assert "centroids in fp32, rounded to 8 bit\n" in capsys.readouterr().out

    def test_online(self, photos: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Nothing stored is read, so nothing stored decides."""
        online = {"teacher.mode": "online", "teacher.rounding": "none"}
        assert self.inputs(photos, store, capsys, **online).config.teacher.precision == "fp32"
        assert "centroids in fp32\n" in capsys.readouterr().out
