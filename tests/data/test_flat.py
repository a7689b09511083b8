import numpy as np
import pytest
import torch
from PIL import Image

from eco_fast.data.flat import FlatImages, add_centroids, load_training_set
from eco_fast.data.pixels import bicubic_lr
from eco_fast.errors import UserError
from eco_kernels import bicubic_downsample


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def noise(rng, height, width):
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def nearest(scale):
    """A teacher that repeats pixels."""
    return lambda lr: lr.repeat(scale, 0).repeat(scale, 1)


def test_flat_images_keep_every_byte(rng):
    arrays = [noise(rng, 5, 7), noise(rng, 1, 1), noise(rng, 9, 4)]
    flat = FlatImages.from_arrays(arrays)
    assert len(flat) == 3
    assert flat.offsets.tolist() == [0, 105, 108] and flat.offsets.dtype == torch.int64
    for i, array in enumerate(arrays):
        np.testing.assert_array_equal(flat.image(i), array)
    assert np.shares_memory(flat.image(1), flat.data.numpy())


def test_consumed_list_is_emptied(rng):
    arrays = [noise(rng, 5, 7), noise(rng, 9, 4)]
    kept = list(arrays)
    flat = FlatImages.from_arrays(arrays, consume=True)
    assert arrays == []
    for i, array in enumerate(kept):
        np.testing.assert_array_equal(flat.image(i), array)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_sizes_are_cropped_and_lr_is_the_whole_images(tmp_path, rng, scale):
    images = {"a.png": noise(rng, 41, 38), "b.png": noise(rng, 36, 48)}
    for name, image in images.items():
        write(tmp_path / name, image)
    ts = load_training_set([tmp_path], scale, 8)
    assert ts.names == ["a.png", "b.png"]
    assert ts.notes.lines() == [f"1 image cropped to a multiple of {scale}: a.png"]
    for i, name in enumerate(ts.names):
        height, width = (side - side % scale for side in images[name].shape[:2])
        hr = images[name][:height, :width]
        np.testing.assert_array_equal(ts.hr.image(i), hr)
        lr = bicubic_downsample(torch.from_numpy(hr.copy()).permute(2, 0, 1)[None], scale, rounding="matlab")
        np.testing.assert_array_equal(ts.lr.image(i), lr[0].permute(1, 2, 0).numpy())
    assert ts.notes.raise_if_any() is None  # cropping is no reason to stop under --strict


def test_small_images_are_left_out(tmp_path, rng):
    for name, side in {"a.png": 17, "b.png": 16, "c.png": 15, "d.png": 4}.items():
        write(tmp_path / name, noise(rng, side, 40))
    ts = load_training_set([tmp_path], 2, 8)
    assert ts.names == ["a.png", "b.png"]
    assert "2 images left out, smaller than a patch (16 x 16): c.png, d.png" in ts.notes.lines()
    with pytest.raises(UserError, match=r"2 images left out.*leave --strict out"):
        load_training_set([tmp_path], 2, 8, strict=True)
    with pytest.raises(UserError, match="none of the 4 training images holds a patch of 100 x 100"):
        load_training_set([tmp_path], 2, 50)


def test_conversions_are_noted_or_refused(tmp_path, rng):
    write(tmp_path / "grey.png", noise(rng, 20, 20)[..., 0])
    ts = load_training_set([tmp_path], 2, 8)
    assert ts.notes.lines() == ["1 greyscale image converted to RGB: grey.png"]
    with pytest.raises(UserError, match="1 greyscale image converted"):
        load_training_set([tmp_path], 2, 8, strict=True)


def test_several_folders_and_no_image_twice(tmp_path, rng):
    write(tmp_path / "one" / "a.png", noise(rng, 20, 20))
    write(tmp_path / "two" / "b.png", noise(rng, 20, 20))
    (tmp_path / "list.txt").write_text("two/b.png\none/a.png\n")
    calls = []
    paths = [tmp_path / "two", tmp_path / "one", tmp_path / "list.txt"]
    ts = load_training_set(paths, 2, 8, progress=lambda done, total: calls.append((done, total)))
    assert ts.names == ["b.png", "a.png"]
    assert calls == [(1, 2), (2, 2)]
    with pytest.raises(UserError, match="no training images are named"):
        load_training_set([], 2, 8)


def test_published_layout_gives_its_hr_only(tmp_path, rng):
    write(tmp_path / "HR" / "a.png", noise(rng, 20, 20))
    write(tmp_path / "LR_bicubic" / "X2" / "ax2.png", noise(rng, 10, 10))
    assert load_training_set([tmp_path], 2, 8).names == ["a.png"]


def test_broken_image_is_named(tmp_path, rng):
    for i in range(8):
        write(tmp_path / f"{i}.png", noise(rng, 20, 20))
    (tmp_path / "5.png").write_bytes(b"no")
    with pytest.raises(UserError, match=r"cannot read image .*5\.png"):
        load_training_set([tmp_path], 2, 8)


@pytest.mark.parametrize("name", ["ax2.png", "a.png", "X2/ax2.png", "X2/a.bmp"])
def test_own_lr_is_used(tmp_path, rng, name):
    lr = noise(rng, 10, 11)
    write(tmp_path / "hr" / "a.png", noise(rng, 21, 22))
    write(tmp_path / "lr" / name, lr)
    write(tmp_path / "lr" / "spare.png", lr)
    ts = load_training_set([tmp_path / "hr"], 2, 8, lr_dir=tmp_path / "lr")
    np.testing.assert_array_equal(ts.lr.image(0), lr)


def test_own_lr_that_does_not_fit_is_refused(tmp_path, rng):
    hr, lr = tmp_path / "hr", tmp_path / "lr"
    for name in "abcde":
        write(hr / f"{name}.png", noise(rng, 20, 20))
        write(lr / f"{name}.png", noise(rng, 9, 10))
    with pytest.raises(UserError, match=r"5 LR images .* size of their HR .*: a.png \(10 x 9 instead of 10 x 10\)"):
        load_training_set([hr], 2, 8, lr_dir=lr)
    (lr / "b.png").unlink()
    with pytest.raises(UserError, match=r"1 training images have no LR image NAMEx2 or NAME in .*: b\.png; add"):
        load_training_set([hr], 2, 8, lr_dir=lr)
    write(lr / "more" / "a.png", noise(rng, 10, 10))
    with pytest.raises(UserError, match="paired by name, but a occur more than once"):
        load_training_set([hr], 2, 8, lr_dir=lr)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_centroids_are_whole_images(tmp_path, rng, scale):
    for name in ("a.png", "b.png"):
        write(tmp_path / name, noise(rng, 12 * scale + 1, 15 * scale))
    calls = []
    plain = load_training_set([tmp_path], scale, 8)
    ts = add_centroids(plain, nearest(scale), progress=lambda done, total: calls.append((done, total)))
    assert plain.centroid is None and calls == [(1, 2), (2, 2)]
    for i in range(2):
        sr = nearest(scale)(ts.lr.image(i))
        np.testing.assert_array_equal(ts.centroid.image(i), sr)
        np.testing.assert_array_equal(ts.centroid_lr.image(i), bicubic_lr(sr, scale))
    assert torch.equal(ts.centroid.offsets, ts.hr.offsets) and torch.equal(ts.centroid_lr.offsets, ts.lr.offsets)
    moved = ts.to("cpu")
    assert torch.equal(moved.centroid_lr.data, ts.centroid_lr.data)


def test_teacher_of_another_scale_is_refused(tmp_path, rng):
    write(tmp_path / "a.png", noise(rng, 20, 30))
    ts = load_training_set([tmp_path], 2, 8)
    with pytest.raises(UserError, match="the teacher makes 60 x 40 of 15 x 10 pixels, which is not x2; name a teacher"):
        add_centroids(ts, nearest(4))


def test_published_lr_is_reproduced(testdata):
    for scale in (2, 3, 4):
        made = load_training_set([testdata / "Set5"], scale, 16)
        published = load_training_set([testdata / "Set5"], scale, 16, lr_dir=testdata / "Set5" / "LR_bicubic")
        assert len(made.names) == 5
        assert torch.equal(made.lr.data, published.lr.data)


@pytest.mark.slow
def test_t91_at_x4_keeps_the_images_that_hold_a_patch(testdata):
    ts = load_training_set([testdata / "train" / "T91"], 4, 48)
    assert len(ts.names) == 40
    assert any(line.startswith("50 images left out, smaller than a patch (192 x 192): ") for line in ts.notes.lines())
