"""Layouts of evaluation sets, and what does not fit."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eco_fast.data.notes import Notes
from eco_fast.errors import UserError
from eco_fast.evaluate.benchmark import benchmark_name, load_benchmark


def _halved(folder: Path, target: Path, suffix: str = "") -> Path:
    target.mkdir(parents=True)
    for file in folder.glob("*.png"):
        image = Image.open(file)
        image.resize((image.width // 2, image.height // 2)).save(target / f"{file.stem}{suffix}.png")
    return target


def test_hr_alone(photos: Path) -> None:
    Image.new("RGB", (65, 63)).save(photos / "odd.png")
    notes = Notes()
    pairs = load_benchmark(photos, 4, None, notes)
    assert [pair.name for pair in pairs] == ["image0", "image1", "image2", "image3", "odd"]
    assert all(pair.hr.shape == (4 * pair.lr.shape[0], 4 * pair.lr.shape[1], 3) for pair in pairs)
    assert pairs[-1].hr.shape == (60, 64, 3)
    assert notes.lines() == ["1 image cropped to a multiple of 4: odd.png"]


@pytest.mark.parametrize("suffix", ["", "x2"])
def test_lr_folder(photos: Path, tmp_path: Path, suffix: str) -> None:
    lr = _halved(photos, tmp_path / "lr", suffix)
    pairs = load_benchmark(photos, 2, lr, Notes())
    assert all(np.array_equal(p.lr, np.asarray(Image.open(lr / f"{p.name}{suffix}.png"))) for p in pairs)


def test_published_layout(photos: Path, tmp_path: Path) -> None:
    root = tmp_path / "Some5"
    root.mkdir()
    lr = _halved(photos, root / "LR_bicubic" / "X2", "x2")
    photos.rename(root / "HR")
    pairs = load_benchmark(root, 2, None, Notes())
    assert np.array_equal(pairs[0].lr, np.asarray(Image.open(lr / "image0x2.png")))
    assert load_benchmark(root, 4, None, Notes())[0].lr.shape == (16, 20, 3)
    assert benchmark_name(root) == benchmark_name(root / "HR") == "Some5"
    assert [p.name for p in load_benchmark(root, 2, root / "LR_bicubic", Notes())] == [p.name for p in pairs]


def test_made_lr_equals_the_published_one(testdata: Path) -> None:
    published = load_benchmark(testdata / "Set5", 3, None, Notes())
    made = load_benchmark(testdata / "Set5" / "HR", 3, None, Notes())
    assert all(np.array_equal(a.lr, b.lr) for a, b in zip(published, made, strict=True))


def test_missing_lr_images(photos: Path, tmp_path: Path) -> None:
    lr = _halved(photos, tmp_path / "lr")
    (lr / "image1.png").unlink()
    (lr / "image3.png").rename(lr / "other.png")
    with pytest.raises(UserError, match=r"2 of 4 HR images .*image1, image3"):
        load_benchmark(photos, 2, lr, Notes())


def test_lr_of_another_size(photos: Path, tmp_path: Path) -> None:
    lr = _halved(photos, tmp_path / "lr")
    Image.new("RGB", (41, 32)).save(lr / "image0.png")
    with pytest.raises(UserError, match=r"1 of 4 LR images .*image0 \(41 x 32 for 80 x 64\)"):
        load_benchmark(photos, 2, lr, Notes())


def test_two_images_of_one_name(photos: Path) -> None:
    Image.new("RGB", (64, 64)).save(photos / "image0.jpg")
    with pytest.raises(UserError, match="image0"):
        load_benchmark(photos, 2, None, Notes())


def test_image_too_small_for_the_metrics(photos: Path) -> None:
    Image.new("RGB", (64, 14)).save(photos / "thin.png")
    with pytest.raises(UserError, match=r"thin\.png"):
        load_benchmark(photos, 2, None, Notes())
