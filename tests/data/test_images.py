"""Finding and decoding images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eco_fast.data.decode import read_image
from eco_fast.data.find import find_images
from eco_fast.data.header import image_size
from eco_fast.data.notes import Notes
from eco_fast.data.pixels import crop_to_multiple
from eco_fast.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)


def test_folders_are_searched_in_a_fixed_order(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "sub/c.tiff", ".hidden/d.png", "Thumbs.db"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [str(p.relative_to(tmp_path)) for p in find_images(tmp_path)] == ["a.JPG", "b.png", "sub/c.tiff"]


def test_a_list_keeps_its_order_and_is_relative_to_itself(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    listing = tmp_path / "list.txt"
    listing.write_text("# comment\nb.png\n\na.png\n")
    assert [p.name for p in find_images(listing)] == ["b.png", "a.png"]
    listing.write_text("gone.png\n")
    with pytest.raises(UserError, match=r"line 1 .*gone\.png"):
        find_images(listing)


def test_a_linked_loop_ends(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    assert len(find_images(tmp_path)) == 1


@pytest.mark.parametrize("extension", ["png", "bmp", "tiff", "webp"])
def test_lossless_formats_decode_to_the_same_pixels(tmp_path: Path, extension: str) -> None:
    file = tmp_path / f"image.{extension}"
    Image.fromarray(PIXELS).save(file, **({"lossless": True} if extension == "webp" else {}))
    notes = Notes()
    np.testing.assert_array_equal(read_image(file, notes), PIXELS)
    assert notes.lines() == []


@pytest.mark.parametrize(
    ("mode", "words"), [("L", "greyscale"), ("LA", "alpha"), ("RGBA", "alpha"), ("P", "palette"), ("CMYK", "CMYK")]
)
def test_other_modes_are_converted_and_noted(tmp_path: Path, mode: str, words: str) -> None:
    file = tmp_path / ("image.tiff" if mode == "CMYK" else "image.png")
    Image.fromarray(PIXELS).convert(mode).save(file)
    notes = Notes()
    image = read_image(file, notes)
    assert (image.shape, image.dtype) == (PIXELS.shape, np.uint8)
    [line] = notes.lines()
    assert words in line and file.name in line
    from_header = Notes()
    assert image_size(file, from_header) == PIXELS.shape[:2]
    assert from_header.lines() == notes.lines()


def test_exif_orientation_is_respected(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    Image.fromarray(PIXELS).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png", Notes()), np.rot90(PIXELS, -1))


@pytest.mark.parametrize("extension", ["png", "tiff"])
def test_deep_images_are_refused(tmp_path: Path, extension: str) -> None:
    file = tmp_path / f"deep.{extension}"
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(file)
    with pytest.raises(UserError, match=rf"deep\.{extension} has more than 8 bits per channel"):
        read_image(file, Notes())
    with pytest.raises(UserError, match=rf"deep\.{extension} has more than 8 bits per channel"):
        image_size(file, Notes())


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    file = tmp_path / "cut.png"
    Image.fromarray(PIXELS).save(file)
    file.write_bytes(file.read_bytes()[:-60])
    with pytest.raises(UserError, match=r"cut\.png"):
        read_image(file, Notes())


def test_crop_to_multiple() -> None:
    assert crop_to_multiple(PIXELS, 4).shape == (12, 8, 3)


def test_notes_name_the_first_three_and_can_be_errors() -> None:
    notes = Notes()
    for name in "dcba":
        notes.add("images left out", f"{name}.png")
    assert notes.lines() == ["4 images left out: a.png, b.png, c.png, ..."]
    with pytest.raises(UserError, match="4 images left out"):
        notes.raise_if_any()
    tolerant = Notes()
    tolerant.add("images cropped", "a.png", tolerated=True)
    tolerant.raise_if_any()
