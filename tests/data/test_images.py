"""Finding and decoding images."""

import os
from pathlib import Path
from typing import Any

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


def test_other_files_are_counted_by_kind(tmp_path: Path) -> None:
    for name in ("a.png", "README.md", "notes.txt", "LICENSE", "x.tar.gz", "b.jpg.part", "c.HEIC", "desktop.ini"):
        (tmp_path / name).touch()
    notes = Notes()
    assert [p.name for p in find_images(tmp_path, notes)] == ["a.png"]
    assert notes.lines() == [
        "1 archive file among the images, not unpacked: x.tar.gz",
        "1 half-copied file among the images, not read: b.jpg.part",
        "3 other files among the images, passed over: LICENSE, README.md, notes.txt",
        "1 picture file in a format that is not read: c.HEIC",
    ]
    with pytest.raises(UserError, match=r"x\.tar\.gz; .*b\.jpg\.part; .*c\.HEIC; fix") as strict:
        notes.raise_if_any()
    assert "README" not in str(strict.value)


def test_faults_can_be_taken_instead_of_raised(tmp_path: Path) -> None:
    for name in ("a.png", "c.heic", "README.md"):
        (tmp_path / name).touch()
    (tmp_path / "list.txt").write_text("a.png\ngone.png\nREADME.md\n")
    (tmp_path / "notes.txt").write_text("remember\nthe milk\n")
    faults: list[str] = []
    notes = Notes()

    def find(name: str) -> list[str]:
        return [p.name for p in find_images(tmp_path / name, notes, lambda error: faults.append(str(error)))]

    assert find("list.txt") == ["a.png"]
    assert [line.split(" of ")[0] for line in faults] == ["line 2", "line 3"]
    faults.clear()
    assert find("notes.txt") == [] and find("README.md") == []
    assert faults == [] and notes.lines() == ["2 other files among the images, passed over: README.md, notes.txt"]
    assert find("") == ["a.png"]
    assert faults == [f"{tmp_path / 'c.heic'} is of a format that is not read; convert it to PNG"]
    with pytest.raises(UserError, match="does not exist"):
        find("gone")


def test_an_unreadable_folder_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read any folder: the refusal is made here."""
    for name in ("a.png", "locked/b.png", "z/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    scan = os.scandir

    def refusing(path: str) -> Any:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    faults: list[UserError] = []
    assert [p.name for p in find_images(tmp_path, on_fault=faults.append)] == ["a.png", "c.png"]
    assert [str(error) for error in faults] == [
        f"cannot read folder {tmp_path / 'locked'}: Permission denied; fix its permissions"
    ]
    with pytest.raises(UserError, match="cannot read folder"):
        find_images(tmp_path)


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
