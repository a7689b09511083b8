"""Decoding by DALI and by Pillow: the same pixels, and the same files refused."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eco_fast.data import decode as module
from eco_fast.data.decode import BY_PILLOW, Decoder, read_image, to_8bit
from eco_fast.data.header import image_size
from eco_fast.data.notes import Notes
from eco_fast.errors import UserError
from tests.conftest import make_image

PIXELS = make_image(61, 83, 4)
GREY = PIXELS[..., 0]
ORIENTATION = 0x0112

dali = pytest.mark.usefixtures("dali")


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def alpha(image: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack([image, GREY]))


def palette() -> Image.Image:
    return Image.fromarray(PIXELS).quantize(99)


Save = Callable[[Path], None]
rgb = Image.fromarray(PIXELS)
grey = Image.fromarray(GREY)
FILES: dict[str, Save] = {
    "rgb.png": lambda p: rgb.save(p),
    "grey.png": lambda p: grey.save(p),
    "bits.png": lambda p: Image.fromarray(GREY > 128).save(p),
    "alpha.png": lambda p: alpha(PIXELS).save(p),
    "grey alpha.png": lambda p: alpha(GREY[..., None]).save(p),
    "palette.png": lambda p: palette().save(p),
    "palette, transparent.png": lambda p: palette().save(p, transparency=3),
    "transparent.png": lambda p: rgb.save(p, transparency=(1, 2, 3)),
    "one pixel.png": lambda p: Image.fromarray(PIXELS[:1, :1]).save(p),
    "two frames.png": lambda p: rgb.save(p, save_all=True, append_images=[Image.fromarray(255 - PIXELS)]),
    "444.jpg": lambda p: rgb.save(p, quality=95, subsampling=0),
    "422.jpg": lambda p: rgb.save(p, quality=80, subsampling=1),
    "420.jpg": lambda p: rgb.save(p, quality=60, subsampling=2),
    "progressive.jpg": lambda p: rgb.save(p, progressive=True),
    "grey.jpg": lambda p: grey.save(p),
    "cmyk.jpg": lambda p: rgb.convert("CMYK").save(p),
    "previews.jpg": lambda p: rgb.save(p, format="MPO", save_all=True, append_images=[grey.convert("RGB")]),
    "lossless.webp": lambda p: rgb.save(p, lossless=True),
    "lossy.webp": lambda p: rgb.save(p, quality=70),
    "alpha.webp": lambda p: alpha(PIXELS).save(p, lossless=True),
    "turned.webp": lambda p: rgb.save(p, lossless=True, exif=turned(6)),
    "rgb.bmp": lambda p: rgb.save(p),
    "palette.bmp": lambda p: palette().save(p),
    "rgb.tif": lambda p: rgb.save(p, compression="tiff_lzw"),
    "palette.tif": lambda p: palette().save(p),
    "cmyk.tif": lambda p: rgb.convert("CMYK").save(p),
    "grey alpha.tif": lambda p: alpha(GREY[..., None]).save(p),
    **{f"turned {n}.png": (lambda p, n=n: rgb.save(p, exif=turned(n))) for n in range(1, 9)},
    **{f"turned {n}.jpg": (lambda p, n=n: rgb.save(p, exif=turned(n))) for n in range(1, 9)},
}
BY_DALI = (".png", ".jpg", ".webp")


@dali
@pytest.mark.parametrize("name", FILES)
def test_both_decoders_give_the_same_pixels_and_notes(name: str, tmp_path: Path) -> None:
    """Upright, RGB; and the size in the header is that of the result."""
    path = tmp_path / name
    FILES[name](path)
    ours, theirs = Notes(), Notes()
    decoded = Decoder()(path, ours)
    expected = read_image(path, theirs)
    assert decoded.pixels.dtype == np.uint8
    np.testing.assert_array_equal(decoded.pixels, expected)
    assert image_size(path) == expected.shape[:2]
    left = name == "turned.webp"  # what DALI is known not to decode
    assert decoded.decoder.startswith("DALI" if path.suffix in BY_DALI and not left else "Pillow")
    assert ours.kinds() == sorted(theirs.kinds() + [BY_PILLOW] * left)
    if left:
        ours.raise_if_any()  # that note is no error under --strict


def test_without_dali_pillow_decodes_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(source: str) -> None:
        raise UserError("no DALI")

    monkeypatch.setattr(module, "load_dali", missing)
    rgb.save(tmp_path / "a.png")
    decoded = Decoder()(tmp_path / "a.png", Notes())
    assert decoded.decoder.startswith("Pillow")
    np.testing.assert_array_equal(decoded.pixels, PIXELS)
    with pytest.raises(UserError, match=r"--allow-16bit needs NVIDIA DALI.*pip install nvidia-dali-cuda130"):
        Decoder(allow_16bit=True)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "last byte": lambda b: b[:-1],
    "last four": lambda b: b[:-4],
    "last chunk": lambda b: b[:-12],
    "half": lambda b: b[: len(b) // 2],
    "zeros": lambda b: b[: len(b) // 2] + bytes(len(b) - len(b) // 2),
    "empty": lambda b: b"",
}
DAMAGED = ("rgb.png", "palette.png", "444.jpg", "progressive.jpg", "lossless.webp", "rgb.bmp")
# Formats without a checksum of their pixels, and a byte that is padding.
SILENT = {("rgb.bmp", "last byte")} | {(name, "zeros") for name in ("rgb.bmp", "444.jpg", "lossless.webp")}


@pytest.mark.parametrize(("name", "damage"), [(n, d) for n in DAMAGED for d in DAMAGE if (n, d) not in SILENT])
def test_damaged_files_are_named_by_both(name: str, damage: str, tmp_path: Path) -> None:
    path = tmp_path / name
    FILES[name](path)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    for decode in (Decoder(), read_image):
        with pytest.raises(UserError, match=f"cannot read image .*{name}") as error:
            decode(path, Notes())
        assert "\n" not in str(error.value)


def test_a_png_with_a_flipped_bit_is_named(tmp_path: Path) -> None:
    """Pillow alone may take it: all rows are full before the checksum of the pixels comes."""
    rows = b"".join(b"\0" + row.tobytes() for row in PIXELS)
    data = zlib.compress(rows, 0)
    pixels = bytearray(chunk(b"IDAT", data[:-4]))
    pixels[len(pixels) // 2] ^= 0x10
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", PIXELS.shape[1], PIXELS.shape[0], 8, 2, 0, 0, 0))
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IDAT", data[-4:]) + chunk(b"IEND", b""))
    for decode in (Decoder(), read_image):
        with pytest.raises(UserError, match=r"cannot read image .*a\.png"):
            decode(path, Notes())


def test_a_tiff_with_a_flipped_bit_is_named(tmp_path: Path) -> None:
    """DALI would take it."""
    path = tmp_path / "a.tif"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)).save(
        path, compression="tiff_deflate"
    )
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read image .*a\.tif"):
        Decoder()(path, Notes())


@dali
def test_after_a_broken_file_the_next_one_is_decoded(tmp_path: Path) -> None:
    decoder = Decoder()
    rgb.save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "good.png").read_bytes()[:-30])
    with pytest.raises(UserError, match="bad"):
        decoder(tmp_path / "bad.png", Notes())
    decoded = decoder(tmp_path / "good.png", Notes())
    assert decoded.decoder.startswith("DALI")
    np.testing.assert_array_equal(decoded.pixels, PIXELS)


def test_an_orientation_behind_the_pixels_counts(tmp_path: Path) -> None:
    """PNG allows its EXIF data there; the header's size must agree, and needs no decoding."""
    path = tmp_path / "a.png"
    rgb.save(path)
    content = path.read_bytes()
    path.write_bytes(content[:-12] + chunk(b"eXIf", turned(6).tobytes().removeprefix(b"Exif\0\0")) + content[-12:])
    assert image_size(path) == (83, 61)
    assert read_image(path, Notes()).shape == (83, 61, 3)
    assert Decoder()(path, Notes()).pixels.shape == (83, 61, 3)


def test_the_size_is_read_without_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rgb.save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda *_: pytest.fail("decoded"))
    assert image_size(tmp_path / "a.png") == (61, 83)


# 16 bits per channel

DEEP = np.random.default_rng(0).integers(0, 65536, (37, 53, 3), dtype=np.uint16)
DEEP[0, :50] = np.arange(50, dtype=np.uint16)[:, None] * 257 + 128  # nearest below the middle of two values
DEEP[1, :50] = np.arange(50, dtype=np.uint16)[:, None] * 257 + 129  # nearest above
DEEP[2, 0], DEEP[2, 1] = 0, 65535
ROUNDED = np.rint(DEEP.astype(np.float64) / 257).astype(np.uint8)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def deep_png(pixels: np.ndarray, colour: int) -> bytes:
    """A PNG of 16 bits per channel, which Pillow cannot write in colour."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def deep_tiff(pixels: np.ndarray, *, photometric: int = 2, planar: int = 1, sample_format: int = 1) -> bytes:
    """An uncompressed little-endian TIFF of 16 bits per channel."""
    height, width, channels = pixels.shape
    data = (np.moveaxis(pixels, -1, 0) if planar == 2 else pixels).astype("<u2").tobytes()
    plane = len(data) // channels
    strips = [8 + plane * i for i in range(channels)] if planar == 2 else [8]
    tags = {256: [width], 257: [height], 258: [16] * channels, 259: [1], 262: [photometric], 273: strips}
    tags |= {277: [channels], 278: [height], 279: [len(data) // len(strips)] * len(strips), 284: [planar]}
    tags |= {339: [sample_format] * channels}
    start = 8 + len(data)
    behind = start + 2 + 12 * len(tags) + 4
    records, values = b"", b""
    for tag, found in sorted(tags.items()):
        kind, letter = (4, "I") if tag in (273, 279) else (3, "H")  # DALI insists on these types
        packed = struct.pack(f"<{len(found)}{letter}", *found)
        place = packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack("<I", behind + len(values))
        values += b"" if len(packed) <= 4 else packed
        records += struct.pack("<HHI", tag, kind, len(found)) + place
    return struct.pack("<2sHI", b"II", 42, start) + data + struct.pack("<H", len(tags)) + records + bytes(4) + values


ONE = DEEP[..., :1]
DEEP_FILES: dict[str, tuple[bytes, np.ndarray]] = {
    "rgb.png": (deep_png(DEEP, 2), ROUNDED),
    "grey.png": (deep_png(ONE, 0), ROUNDED[..., :1].repeat(3, 2)),
    "alpha.png": (deep_png(np.dstack([DEEP, ONE]), 6), ROUNDED),
    "grey alpha.png": (deep_png(np.dstack([ONE, ONE[::-1]]), 4), ROUNDED[..., :1].repeat(3, 2)),
    "rgb.tif": (deep_tiff(DEEP), ROUNDED),
    "grey.tif": (deep_tiff(ONE, photometric=1), ROUNDED[..., :1].repeat(3, 2)),
}
OTHER_DEEP: dict[str, bytes] = {
    "planar.tif": deep_tiff(DEEP, planar=2),  # DALI would give noise
    "white is zero.tif": deep_tiff(ONE, photometric=0),  # DALI would give the negative
    "signed.tif": deep_tiff(ONE, photometric=1, sample_format=2),
}


@dali
@pytest.mark.parametrize("name", DEEP_FILES)
def test_16_bits_are_refused_or_rounded(name: str, tmp_path: Path) -> None:
    content, expected = DEEP_FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{name} has more than 8 bits per channel.*--allow-16bit"):
        Decoder()(path, Notes())
    notes = Notes()
    np.testing.assert_array_equal(Decoder(allow_16bit=True)(path, notes).pixels, expected)
    assert notes.lines() == [f"1 16-bit image rounded to 8 bit: {name}"]


@dali
@pytest.mark.parametrize("name", OTHER_DEEP)
def test_deep_images_of_other_kinds_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(OTHER_DEEP[name])
    with pytest.raises(UserError, match=name) as error:
        Decoder(allow_16bit=True)(path, Notes())
    assert "8 bit" in str(error.value)


@dali
def test_a_truncated_16_bit_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    path.write_bytes(DEEP_FILES["rgb.png"][0][:-500])
    with pytest.raises(UserError, match=r"cannot read image .*cut\.png"):
        Decoder(allow_16bit=True)(path, Notes())


def test_every_16_bit_value_is_rounded_to_the_nearest() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(to_8bit(values), np.rint(values / 257.0).astype(np.uint8))
