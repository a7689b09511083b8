import numpy as np
import pytest
import torch
from PIL import Image

from eco_fast.data.flat import FlatImages
from eco_fast.data.pixels import crop_to_multiple
from eco_fast.errors import UserError
from eco_kernels import bicubic_downsample
from tests.sets import load


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def noise(rng, height, width):
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_flat_images_keep_every_byte(rng):
    arrays = [noise(rng, 5, 7), noise(rng, 1, 1), noise(rng, 9, 4)]
    flat = FlatImages.from_arrays(arrays)
    assert len(flat) == 3
    assert flat.offsets.tolist() == [0, 105, 108] and flat.offsets.dtype == torch.int64
    for i, array in enumerate(arrays):
        np.testing.assert_array_equal(flat.image(i), array)
    assert np.shares_memory(flat.image(1), flat.data.numpy())


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "images"


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_lr_is_that_of_the_whole_image(tmp_path, folder, rng, scale):
    images = {"a.png": noise(rng, 41, 38), "b.png": noise(rng, 36, 48)}
    for name, image in images.items():
        write(folder / name, image)
    names, ts, notes = load([folder], tmp_path / "store", scale, 8)
    assert names == ["a.png", "b.png"]
    assert notes.lines() == [f"1 image cropped to a multiple of {scale}: a.png"]
    for i, image in enumerate(images.values()):
        np.testing.assert_array_equal(ts.hr.image(i), image)
        hr = torch.from_numpy(crop_to_multiple(image, scale).copy()).permute(2, 0, 1)[None]
        lr = bicubic_downsample(hr, scale, rounding="matlab")
        np.testing.assert_array_equal(ts.lr.image(i), lr[0].permute(1, 2, 0).numpy())
    assert notes.raise_if_any() is None  # cropping is no reason to stop under --strict


def test_small_images_are_left_out(tmp_path, folder, rng):
    for name, side in {"a.png": 17, "b.png": 16, "c.png": 15, "d.png": 4}.items():
        write(folder / name, noise(rng, side, 40))
    names, _, notes = load([folder], tmp_path / "store", 2, 8)
    assert names == ["a.png", "b.png"]
    assert "2 images left out, smaller than a patch (16 x 16): c.png, d.png" in notes.lines()
    with pytest.raises(UserError, match=r"2 images left out.*leave --strict out"):
        notes.raise_if_any()
    with pytest.raises(UserError, match="none of the 4 training images holds a patch of 100 x 100"):
        load([folder], tmp_path / "store", 2, 50)


def test_conversions_are_noted_or_refused(tmp_path, folder, rng):
    write(folder / "grey.png", noise(rng, 20, 20)[..., 0])
    notes = load([folder], tmp_path / "store", 2, 8).notes
    assert notes.lines() == ["1 greyscale image converted to RGB: grey.png"]
    with pytest.raises(UserError, match="1 greyscale image converted"):
        notes.raise_if_any()


def test_several_folders_and_no_image_twice(tmp_path, folder, rng):
    write(folder / "one" / "a.png", noise(rng, 20, 20))
    write(folder / "two" / "b.png", noise(rng, 20, 20))
    (folder / "list.txt").write_text("two/b.png\none/a.png\n")
    paths = [folder / "two", folder / "one", folder / "list.txt"]
    assert load(paths, tmp_path / "store", 2, 8).names == ["b.png", "a.png"]
    with pytest.raises(UserError, match="no training images are named"):
        load([], tmp_path / "other", 2, 8)


def test_published_layout_gives_its_hr_only(tmp_path, folder, rng):
    write(folder / "HR" / "a.png", noise(rng, 20, 20))
    write(folder / "LR_bicubic" / "X2" / "ax2.png", noise(rng, 10, 10))
    assert load([folder], tmp_path / "store", 2, 8).names == ["a.png"]


@pytest.mark.parametrize("name", ["ax2.png", "a.png", "X2/ax2.png", "X2/a.bmp"])
def test_own_lr_is_used(tmp_path, folder, rng, name):
    lr = noise(rng, 10, 11)
    write(folder / "a.png", noise(rng, 21, 22))
    write(tmp_path / "lr" / name, lr)
    write(tmp_path / "lr" / "spare.png", lr)
    ts = load([folder], tmp_path / "store", 2, 8, lr_dir=tmp_path / "lr").images
    np.testing.assert_array_equal(ts.lr.image(0), lr)


def test_own_lr_that_does_not_fit_is_refused(tmp_path, folder, rng):
    lr, store = tmp_path / "lr", tmp_path / "store"
    for name in "abcde":
        write(folder / f"{name}.png", noise(rng, 20, 20))
        write(lr / f"{name}.png", noise(rng, 9, 10))
    with pytest.raises(UserError, match=r"LR image .*\.png has 10 x 9 pixels instead of 10 x 10; remake"):
        load([folder], store, 2, 8, lr_dir=lr)
    (lr / "b.png").unlink()
    with pytest.raises(UserError, match=r"1 training images have no LR image NAMEx2 or NAME in .*: b\.png; add"):
        load([folder], store, 2, 8, lr_dir=lr)
    write(lr / "more" / "a.png", noise(rng, 10, 10))
    with pytest.raises(UserError, match="paired by name, but a occur more than once"):
        load([folder], store, 2, 8, lr_dir=lr)


def test_published_lr_is_reproduced(testdata, tmp_path):
    for scale in (2, 3, 4):
        made = load([testdata / "Set5"], tmp_path / f"made{scale}", scale, 16)
        lr_dir = testdata / "Set5" / "LR_bicubic"
        published = load([testdata / "Set5"], tmp_path / f"published{scale}", scale, 16, lr_dir=lr_dir)
        assert len(made.names) == 5
        assert torch.equal(made.images.lr.data, published.images.lr.data)


@pytest.mark.slow
def test_t91_at_x4_keeps_the_images_that_hold_a_patch(testdata, tmp_path):
    names, _, notes = load([testdata / "train" / "T91"], tmp_path / "store", 4, 48)
    assert len(names) == 40
    assert any(line.startswith("50 images left out, smaller than a patch (192 x 192): ") for line in notes.lines())
