"""Photographs to files, with colour profile, resolution and EXIF data.

PNG and TIFF, which take 16 bits, are written here, in bands of rows: Pillow holds no colours of 16 bits, and would need
a copy of the whole image, which may be the largest thing in memory.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from eco_fast.data.decode import to_8bit
from eco_fast.data.photograph import EXIF_IFD, Photograph, directories
from eco_fast.errors import UserError

FORMATS = ("png", "jpg", "webp", "tiff")

_LARGEST_SIDE = {"png": 2**31 - 1, "jpg": 65_500, "webp": 16_383, "tiff": 2**31 - 1}
_TIFF_BYTES = 2**32 - 2**26  # offsets have 32 bits; what the metadata take is left
_QUALITY = 95
_BAND = 1 << 19  # bytes of pixels that are filtered and compressed together
_PIXEL_X, _PIXEL_Y = 0xA002, 0xA003  # EXIF's own words for the size
_INCH = 0.0254  # metres
_OFFSETS, _LENGTHS = 273, 279  # of TIFF's strips


def refuse_unwritable(path: Path, photo: Photograph, scale: int, kind: str) -> None:
    """Find out before the work whether a format can hold an image `scale` times as large.

    Raises:
        UserError: It cannot.
    """
    height, width = (scale * side for side in photo.pixels.shape[:2])
    if kind == "jpg" and photo.alpha is not None:
        raise UserError(f"{path} is transparent, which JPEG cannot hold; take --format png, webp or tiff")
    channels = photo.pixels.shape[2] + (photo.alpha is not None)
    too_much = kind == "tiff" and height * width * channels * photo.pixels.itemsize > _TIFF_BYTES
    if too_much or max(height, width) > _LARGEST_SIDE[kind]:
        raise UserError(f"{path} would become {width} x {height}, too large for {kind}; take --format png")


def encode(photo: Photograph, kind: str, file: BinaryIO) -> None:
    """Write an image.

    JPEG (quality 95, full colour resolution) and WebP (quality 95) have 8 bits; WebP has no grey.

    Args:
        photo: What is written.
        kind: One of `FORMATS`.
        file: Takes it; seekable.

    Raises:
        OSError: The file cannot be written.
    """
    writers: dict[str, Callable[[Photograph, BinaryIO], None]] = {"png": _png, "tiff": _tiff}
    writers |= {"jpg": _jpg, "webp": _webp}
    writers[kind](photo, file)


def _rows_of_a_band(photo: Photograph) -> int:
    _, width, channels = photo.pixels.shape
    return max(1, _BAND // (width * (channels + 1) * photo.pixels.itemsize))


def _bands(photo: Photograph) -> Iterator[NDArray[Any]]:
    """Rows `(n, W, C)` of pixels and transparency together, from the top."""
    rows = _rows_of_a_band(photo)
    for top in range(0, len(photo.pixels), rows):
        band = photo.pixels[top : top + rows]
        yield band if photo.alpha is None else np.concatenate([band, photo.alpha[top : top + rows]], axis=2)


def _png(photo: Photograph, file: BinaryIO) -> None:
    height, width, channels = photo.pixels.shape
    colour = (2 if channels == 3 else 0) + (0 if photo.alpha is None else 4)
    file.write(b"\x89PNG\r\n\x1a\n")
    _chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 8 * photo.pixels.itemsize, colour, 0, 0, 0))
    if photo.icc is not None:
        _chunk(file, b"iCCP", b"ICC profile\0\0" + zlib.compress(photo.icc))
    if photo.dpi is not None:
        _chunk(file, b"pHYs", struct.pack(">IIB", *(round(dots / _INCH) for dots in photo.dpi), 1))
    if (exif := _exif(photo)) is not None:
        _chunk(file, b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    packer = zlib.compressobj(4, strategy=zlib.Z_FILTERED)  # much faster than level 6, and hardly larger
    above: NDArray[np.uint8] | None = None
    for band in _bands(photo):
        step = band.shape[2] * band.itemsize
        rows = np.ascontiguousarray(band.astype(band.dtype.newbyteorder(">"))).view(np.uint8).reshape(len(band), -1)
        _chunk(file, b"IDAT", packer.compress(_filtered(rows, above, step).tobytes()))
        above = rows[-1]
    _chunk(file, b"IDAT", packer.flush())
    _chunk(file, b"IEND", b"")


def _chunk(file: BinaryIO, kind: bytes, body: bytes) -> None:
    file.write(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind))))


def _filtered(rows: NDArray[np.uint8], above: NDArray[np.uint8] | None, step: int) -> NDArray[np.uint8]:
    """PNG's filter of Paeth, 4, which suits photographs: each byte less what left, upper and upper left foretell.

    Args:
        rows: `(n, bytes of a row)`.
        above: The row before them.
        step: Bytes of a pixel.
    """
    count, length = rows.shape
    around = np.zeros((count + 1, step + length), dtype=np.int16)  # black beyond the borders
    around[1:, step:] = rows
    if above is not None:
        around[0, step:] = above
    left, up, corner = around[1:, :-step], around[:-1, step:], around[:-1, :-step]
    to_left, to_up = np.abs(up - corner), np.abs(left - corner)  # of left + up - corner
    to_corner = np.abs(left + up - 2 * corner)
    foretold = np.where(to_up <= to_corner, up, corner)
    np.copyto(foretold, left, where=(to_left <= to_up) & (to_left <= to_corner))
    filtered = np.full((count, 1 + length), 4, dtype=np.uint8)
    filtered[:, 1:] = rows - foretold.astype(np.uint8)
    return filtered


def _tiff(photo: Photograph, file: BinaryIO) -> None:
    """Little-endian; strips of differences between neighbours, deflated, behind the directory."""
    directory = _directory(photo)
    strips = -(-len(photo.pixels) // _rows_of_a_band(photo))
    directory[_OFFSETS] = directory[_LENGTHS] = (0,) * strips  # the directory's own length does not depend on them
    start = 8 + len(directory.tobytes(8))
    file.write(struct.pack("<2sHI", b"II", 42, 8) + bytes(start - 8))
    offsets, lengths = [], []
    for band in _bands(photo):
        apart = band.astype(band.dtype.newbyteorder("<"))
        apart[:, 1:] -= band[:, :-1]
        offsets.append(file.tell() - start)  # Pillow counts from the directory's end
        lengths.append(file.write(zlib.compress(apart.tobytes())))
    directory[_OFFSETS], directory[_LENGTHS] = tuple(offsets), tuple(lengths)
    file.seek(8)
    file.write(directory.tobytes(8))


def _directory(photo: Photograph) -> ImageFileDirectory_v2:
    """All of a TIFF's tags but where its strips are."""
    directory = ImageFileDirectory_v2()
    height, width, channels = photo.pixels.shape
    together = channels + (photo.alpha is not None)
    tags = {} if (exif := _exif(photo)) is None else directories(exif)
    tags |= {256: width, 257: height, 258: (8 * photo.pixels.itemsize,) * together, 277: together}
    tags |= {259: 8, 317: 2, 262: 2 if channels == 3 else 1, 278: _rows_of_a_band(photo), 284: 1}
    if photo.alpha is not None:
        tags[338] = 2  # not multiplied into the colours
    if photo.dpi is not None:
        tags |= {282: photo.dpi[0], 283: photo.dpi[1], 296: 2}
    if photo.icc is not None:
        tags[34675] = photo.icc
    for tag, value in tags.items():
        directory[tag] = value
    return directory


def _jpg(photo: Photograph, file: BinaryIO) -> None:
    dpi = {} if photo.dpi is None else {"dpi": tuple(map(round, photo.dpi))}
    _by_pillow(photo, file, "JPEG", subsampling=0, **dpi)


def _webp(photo: Photograph, file: BinaryIO) -> None:
    if photo.pixels.shape[2] == 1:
        photo = photo._replace(pixels=photo.pixels.repeat(3, axis=2), icc=None)
    _by_pillow(photo, file, "WEBP")


def _by_pillow(photo: Photograph, file: BinaryIO, format: str, **settings: Any) -> None:
    pixels = photo.pixels if photo.alpha is None else np.concatenate([photo.pixels, photo.alpha], axis=2)
    shown = to_8bit(pixels)
    exif = _exif(photo)
    told = {"icc_profile": photo.icc, "exif": None if exif is None else exif.tobytes()}
    settings |= {name: value for name, value in told.items() if value is not None}
    image = PIL.Image.fromarray(shown[..., 0] if shown.shape[2] == 1 else shown)
    image.save(file, format, quality=_QUALITY, **settings)


def _exif(photo: Photograph) -> PIL.Image.Exif | None:
    """With the size that the image has now, where the size is told."""
    if photo.exif is None:
        return None
    exif = PIL.Image.Exif()
    exif.load(photo.exif)
    camera = exif.get_ifd(EXIF_IFD)
    for tag, side in ((_PIXEL_X, photo.pixels.shape[1]), (_PIXEL_Y, photo.pixels.shape[0])):
        if tag in camera:
            camera[tag] = side
    return exif
