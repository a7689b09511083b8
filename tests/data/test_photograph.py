"""Photographs in and out of files: pixels, transparency, profile, resolution, EXIF."""

import io
import struct
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from eco_fast.data import encode as module
from eco_fast.data.decode import read_image, to_8bit
from eco_fast.data.encode import encode, refuse_unwritable
from eco_fast.data.notes import Notes
from eco_fast.data.photograph import Photograph, directories, read_photograph
from eco_fast.errors import UserError
from tests.conftest import make_image
from tests.data.test_decode import DEEP, DEEP_FILES, OTHER_DEEP, chunk, deep_png, deep_tiff, turned

PIXELS = make_image(61, 83, 4)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GRAY = SRGB[:16] + b"GRAY" + SRGB[20:]


def camera() -> Image.Exif:
    """EXIF data with directories in directories, and sizes that will be wrong."""
    exif = Image.Exif()
    exif[271], exif[274], exif[306] = "Maker", 1, "2024:05:01 10:20:30"
    exif[0x8769] = {33434: 0.004, 36867: "2024:05:01 10:20:30", 37500: b"own\0notes", 0xA002: 5, 0xA003: 6}
    exif[0x8769][0xA005] = {1: "R98"}
    exif[0x8825] = {1: "N", 2: (48.0, 8.0, 13.5)}
    return exif


def tags(content: bytes | None) -> dict[int, Any]:
    assert content is not None
    exif = Image.Exif()
    exif.load(content)
    return directories(exif)


def written(photo: Photograph, kind: str, path: Path) -> Photograph:
    with path.open("wb") as file:
        encode(photo, kind, file)
    notes = Notes()
    back = read_photograph(path, notes)
    assert notes.lines() == []
    return back


KINDS = [(*rest, kind) for rest in product((np.uint8, np.uint16), (1, 3), (False, True)) for kind in ("png", "tiff")]
KINDS.remove((np.uint16, 1, True, "tiff"))  # which Pillow does not read


@pytest.mark.parametrize(("dtype", "channels", "alpha", "kind"), KINDS)
def test_everything_comes_back(
    dtype: type, channels: int, alpha: bool, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BAND", 5000)  # several bands, the last one short
    values = DEEP if dtype is np.uint16 else PIXELS
    pixels = np.ascontiguousarray(values[..., :channels])
    profile = SRGB if channels == 3 else GRAY
    transparency = np.ascontiguousarray(values[::-1, :, 2:]) if alpha else None
    photo = Photograph(pixels, transparency, profile, (300.0, 150.0), camera().tobytes())
    path = tmp_path / f"a.{kind}"
    back = written(photo, kind, path)
    assert back.pixels.dtype == dtype
    np.testing.assert_array_equal(back.pixels, pixels)
    assert (back.alpha is None) == (not alpha)
    if photo.alpha is not None:
        np.testing.assert_array_equal(back.alpha, photo.alpha)
    assert back.icc == profile and back.dpi == pytest.approx((300, 150), abs=0.02)
    found = tags(back.exif)
    assert found[0x8825] == {1: "N", 2: (48.0, 8.0, 13.5)}
    assert found[0x8769] == camera()[0x8769] | {0xA002: pixels.shape[1], 0xA003: pixels.shape[0]}
    assert found[271] == "Maker" and found[274] == 1
    with Image.open(path) as image:  # whole, to others too
        image.load()
        if dtype is np.uint8:
            shown = np.asarray(image).reshape(*pixels.shape[:2], -1)
            np.testing.assert_array_equal(shown[..., :channels], pixels)


def test_others_read_our_16_bits(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile", reason="scikit-image brings it")
    for pixels, alpha in ((DEEP, None), (DEEP, DEEP[..., :1]), (DEEP[..., :1], DEEP[..., 1:2])):
        with (tmp_path / "a.tiff").open("wb") as file:
            encode(Photograph(pixels, alpha, None, None, None), "tiff", file)
        stacked = pixels if alpha is None else np.concatenate([pixels, alpha], axis=2)
        np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tiff"), stacked)


def test_a_png_is_about_as_small_as_pillows(tmp_path: Path) -> None:
    photo = Photograph(make_image(300, 400, 0), None, None, None, None)
    written(photo, "png", tmp_path / "a.png")
    Image.fromarray(photo.pixels).save(tmp_path / "b.png")
    assert (tmp_path / "a.png").stat().st_size < 1.1 * (tmp_path / "b.png").stat().st_size


@pytest.mark.parametrize("kind", ["jpg", "webp"])
@pytest.mark.parametrize("grey", [False, True])
def test_lossy_formats(kind: str, grey: bool, tmp_path: Path) -> None:
    pixels = PIXELS.astype(np.uint16) * 257
    photo = Photograph(pixels[..., :1] if grey else pixels, None, GRAY if grey else SRGB, (300.0, 300.0), None)
    back = written(photo._replace(exif=camera().tobytes()), kind, tmp_path / f"a.{kind}")
    assert back.pixels.dtype == np.uint8
    assert np.abs(back.pixels - to_8bit(photo.pixels).astype(float)).mean() < 8
    assert back.pixels.shape[2] == (1 if grey and kind == "jpg" else 3)  # WebP has no grey
    assert back.icc == (None if grey and kind == "webp" else photo.icc)
    assert tags(back.exif)[0x8769][0xA002] == 83
    if kind == "jpg":
        assert back.dpi == (300, 300)
        with Image.open(tmp_path / "a.jpg") as image:
            assert [each[1:3] for each in image.layer] == [(1, 1)] * (1 if grey else 3)  # 4:4:4
        with pytest.raises(UserError, match=r"transparent, which JPEG cannot hold; take --format png"):
            refuse_unwritable(tmp_path / "a.png", photo._replace(alpha=photo.pixels[..., :1]), 2, "jpg")
    side = 16_384 if kind == "webp" else 65_501
    long = photo._replace(pixels=np.broadcast_to(photo.pixels[:1, :1, :1], (side // 2 + 1, 1, 1)))
    with pytest.raises(UserError, match="too large for"):
        refuse_unwritable(tmp_path / "a.png", long, 2, kind)
    refuse_unwritable(tmp_path / "a.png", long, 2, "png")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_stand_upright(orientation: int, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(PIXELS).save(path, quality=95, exif=turned(orientation))
    photo = read_photograph(path, Notes())
    np.testing.assert_array_equal(photo.pixels, read_image(path, Notes()))
    assert tags(photo.exif)[0x0112] == 1
    content = deep_png(DEEP, 2)
    body = turned(orientation).tobytes().removeprefix(b"Exif\0\0")
    (tmp_path / "deep.png").write_bytes(content[:33] + chunk(b"eXIf", body) + content[33:])
    Image.fromarray((DEEP >> 8).astype(np.uint8)).save(tmp_path / "high.png", exif=turned(orientation))
    deep = read_photograph(tmp_path / "deep.png", Notes()).pixels
    np.testing.assert_array_equal(deep >> 8, read_image(tmp_path / "high.png", Notes()))


@pytest.mark.parametrize("name", DEEP_FILES)
def test_16_bits_are_read_whole(name: str, tmp_path: Path) -> None:
    """Without DALI; the bytes of the file, not what a decoder rounds."""
    path = tmp_path / name
    path.write_bytes(DEEP_FILES[name][0])
    notes = Notes()
    photo = read_photograph(path, notes)
    grey = name.startswith("grey")
    np.testing.assert_array_equal(photo.pixels, DEEP[..., :1] if grey else DEEP)
    if "alpha" in name:
        np.testing.assert_array_equal(photo.alpha, DEEP[::-1, :, :1] if grey else DEEP[..., :1])
    else:
        assert photo.alpha is None
    assert notes.lines() == []


def test_16_bits_of_either_byte_order_in_strips_and_tiles(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile", reason="scikit-image brings it")
    for settings in (
        {"byteorder": ">"},
        {"compression": "zlib", "predictor": True, "rowsperstrip": 7},
        {"compression": "zlib", "byteorder": ">"},
        {"tile": (16, 16)},
    ):
        tifffile.imwrite(tmp_path / "a.tif", DEEP, photometric="rgb", **settings)
        np.testing.assert_array_equal(read_photograph(tmp_path / "a.tif", Notes()).pixels, DEEP)


@pytest.mark.parametrize("name", OTHER_DEEP)
def test_deep_images_of_other_kinds_are_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(OTHER_DEEP[name])
    with pytest.raises(UserError, match=f"{name}.*8 bit"):
        read_photograph(tmp_path / name, Notes())


@pytest.mark.parametrize("content", [deep_png(DEEP, 2)[:-500], deep_tiff(DEEP)[:3000], b"not an image", b""])
def test_damaged_photographs_are_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read image .*cut\.png"):
        read_photograph(tmp_path / "cut.png", Notes())


@pytest.mark.parametrize(("mode", "channels", "alpha"), [("1", 1, 0), ("L", 1, 0), ("LA", 1, 1), ("RGBA", 3, 1)])
def test_grey_stays_grey(mode: str, channels: int, alpha: bool, tmp_path: Path) -> None:
    Image.fromarray(PIXELS).convert(mode).save(tmp_path / "a.png")
    notes = Notes()
    photo = read_photograph(tmp_path / "a.png", notes)
    assert photo.pixels.shape == (61, 83, channels) and (photo.alpha is not None) == alpha
    assert notes.lines() == []


def test_palettes_become_rgb(tmp_path: Path) -> None:
    palette = Image.fromarray(PIXELS).quantize(99)
    notes = Notes()
    for name, settings in {"a.png": {}, "b.gif": {}, "c.png": {"transparency": 3}}.items():
        palette.save(tmp_path / name, **settings)
        photo = read_photograph(tmp_path / name, notes)
        np.testing.assert_array_equal(photo.pixels, np.asarray(palette.convert("RGB")))
        assert (photo.alpha is not None) == bool(settings)
    assert notes.lines() == ["3 palette images converted to RGB: a.png, b.gif, c.png"]


def inks(black: int) -> bytes:
    """A profile of CMYK that takes any inks for one colour, of which only the lightness counts: 0 to 255."""
    lab = bytes([black, 128, 128]) * 16
    ramp = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + ramp * 4 + lab + ramp * 3
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    text = b"text" + bytes(4) + b"none\0\0\0\0"
    start, entries, body = 128 + 4 + 12 * 3, b"", b""
    for name, data in ((b"A2B0", table), (b"wtpt", white), (b"cprt", text)):
        data += bytes(-len(data) % 4)
        entries += name + struct.pack(">II", start + len(body), len(data))
        body += data
    header = struct.pack(">II4s4s4s4s12s", start + len(body), 0, b"\x02\x40\0\0", b"prtr", b"CMYK", b"Lab ", bytes(12))
    header = header[:4] + bytes(4) + header[8:] + b"acsp"
    header = header.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I", 3) + entries + body


def test_inks_become_srgb_by_their_profile(tmp_path: Path) -> None:
    cmyk = Image.fromarray(PIXELS).convert("CMYK")
    cmyk.save(tmp_path / "plain.jpg", quality=95)
    cmyk.save(tmp_path / "profile.jpg", quality=95, icc_profile=inks(0))
    cmyk.save(tmp_path / "light.tif", icc_profile=inks(255))
    cmyk.save(tmp_path / "broken.tif", icc_profile=b"no profile")
    notes = Notes()
    plain = read_photograph(tmp_path / "plain.jpg", notes)
    np.testing.assert_array_equal(plain.pixels, read_image(tmp_path / "plain.jpg", Notes()))
    assert plain.icc is None
    dark, light = (read_photograph(tmp_path / name, notes) for name in ("profile.jpg", "light.tif"))
    assert dark.pixels.max() <= 2 and light.pixels.min() >= 250
    assert dark.icc is not None and dark.icc[16:20] == b"RGB "
    broken = read_photograph(tmp_path / "broken.tif", notes)
    assert broken.icc is None
    np.testing.assert_array_equal(broken.pixels, np.asarray(cmyk.convert("RGB")))
    assert notes.lines() == [
        "4 CMYK images converted to RGB: broken.tif, light.tif, plain.jpg, ...",
        "1 image stripped of a colour profile that does not fit: broken.tif",
    ]


def test_a_profile_of_other_channels_is_left_out(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).convert("L").save(tmp_path / "a.png", icc_profile=SRGB)
    notes = Notes()
    assert read_photograph(tmp_path / "a.png", notes).icc is None
    assert "a.png" in notes.lines()[0]


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_animations_are_named(name: str, tmp_path: Path) -> None:
    frames = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match=f"{name} is animated, 2 frames"):
        read_photograph(tmp_path / name, Notes())


def test_pages_and_previews(tmp_path: Path) -> None:
    first, second = Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
    first.save(tmp_path / "b.jpg", format="MPO", save_all=True, append_images=[second], quality=95)
    notes = Notes()
    for name in ("a.tif", "b.jpg"):
        np.testing.assert_array_equal(
            read_photograph(tmp_path / name, notes).pixels, read_image(tmp_path / name, Notes())
        )
    assert notes.lines() == ["1 image with several pages, the first one taken: a.tif"]


def test_exif_of_a_tiff_is_of_the_picture_alone(tmp_path: Path) -> None:
    """There it shares a directory with what says how the pixels lie."""
    Image.fromarray(PIXELS).save(tmp_path / "a.tif", exif=camera().tobytes(), icc_profile=SRGB, dpi=(300, 300))
    found = tags(read_photograph(tmp_path / "a.tif", Notes()).exif)
    assert found[271] == "Maker" and found[0x8825][1] == "N"
    assert not {256, 257, 258, 259, 262, 273, 278, 279, 34675} & found.keys()


def test_damaged_exif_does_not_stop_an_image(tmp_path: Path) -> None:
    content = bytearray(camera().tobytes())
    content[40:] = b"\xff" * len(content[40:])
    Image.fromarray(PIXELS).save(tmp_path / "a.webp", exif=bytes(content), lossless=True)
    photo = read_photograph(tmp_path / "a.webp", Notes())
    np.testing.assert_array_equal(photo.pixels, PIXELS)
    stream = io.BytesIO()
    encode(photo, "png", stream)
    assert stream.tell() > 100
