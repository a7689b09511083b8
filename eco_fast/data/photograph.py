"""Photographs as people have them: 8 or 16 bits, grey or colour, with transparency and what a file tells of them."""

import io
import math
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL.ImageFile import ImageFile

from eco_fast.data.decode import refuse_damaged
from eco_fast.data.header import EXIF_ORIENTATION, GREY_MODES, Header, exif_of, not_plain, opened
from eco_fast.data.notes import Notes
from eco_fast.errors import UserError

Pixels = NDArray[Any]  # uint8 or uint16

EXIF_IFD, GPS_IFD, INTEROP_IFD = 0x8769, 0x8825, 0xA005

_PLAIN = GREY_MODES | {"RGB", "RGBA", "RGBa"}  # taken as they are
_TRANSPARENT = {"LA", "La", "RGBA", "RGBa", "PA"}
# Tags of the first directory that say how the pixels of that very file lie there, not what they show.
_STRUCTURE = frozenset(
    (254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 301, 317, 320, 322, 323, 324, 325, 330)
    + (332, 338, 339, 340, 341, 347, 512, 513, 514, 529, 530, 531, 532, 700, 33723, 34377, 34675)
)
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}  # of the two bytes of a value
_LEFT_OUT = "images stripped of a colour profile that does not fit"


class Photograph(NamedTuple):
    """An image and what has to come with it into another file."""

    pixels: Pixels  # (H, W, 1) grey or (H, W, 3) RGB, upright
    alpha: Pixels | None  # (H, W, 1) of the same dtype; None: opaque
    icc: bytes | None  # colour profile of the pixels
    dpi: tuple[float, float] | None  # horizontal, vertical
    exif: bytes | None  # orientation 1, without a thumbnail and what describes the old file


def read_photograph(path: Path, notes: Notes) -> Photograph:
    """Decode an image, upright; grey stays grey, 16 bits stay 16 bits. A palette and CMYK become RGB.

    Args:
        path: The file.
        notes: Where conversions are counted.

    Raises:
        UserError: The file cannot be decoded, is animated, or has more than 8 bits in a form that is not read.
    """
    # Pillow warns of what is odd and reads it all the same.
    with warnings.catch_warnings(action="ignore"), opened(path) as (image, header):
        if header.frames > 1 and header.format not in ("MPO", "TIFF"):  # previews of a camera, pages
            raise UserError(f"{path} is animated, {header.frames} frames; take out the one you want")
        if header.frames > 1 and header.format == "TIFF":
            notes.add("images with several pages, the first one taken", path.name)
        refuse_damaged(path, header)
        exif = exif_of(path, image)
        orientation = exif.get(EXIF_ORIENTATION, 1)
        told = _exif_to_keep(exif, path, notes)
        icc, dpi = image.info.get("icc_profile"), _dpi(image.info.get("dpi"))
        if image.mode == "CMYK" and not header.deep:
            image, icc = _from_cmyk(image, icc, path, notes)
        decoded = _deep(path, image, header) if header.deep else _shallow(image, path, notes)
    stacked = np.ascontiguousarray(upright(decoded, orientation))
    channels = stacked.shape[2] - (stacked.shape[2] % 2 == 0)
    if icc is not None and icc[16:20] != (b"GRAY" if channels == 1 else b"RGB "):
        notes.add(_LEFT_OUT, path.name)
        icc = None
    alpha = stacked[..., channels:] if channels < stacked.shape[2] else None
    return Photograph(stacked[..., :channels], alpha, icc, dpi, told)


def upright(image: NDArray[Any], orientation: int) -> NDArray[Any]:
    """An image `(H, W, C)` as EXIF's orientation, 1 to 8, says it is to be seen; a view."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image[::-1] if orientation in (3, 4, 7, 8) else image


def _shallow(image: PIL.Image.Image, path: Path, notes: Notes) -> NDArray[np.uint8]:
    """8 bits: `(H, W, 1 to 4)`, the last of 2 or 4 channels being transparency."""
    if image.mode not in _PLAIN:
        notes.add(f"{'palette' if image.mode in ('P', 'PA') else image.mode} images converted to RGB", path.name)
    transparent = image.mode in _TRANSPARENT or "transparency" in image.info
    mode = ("L" if image.mode in GREY_MODES else "RGB") + ("A" if transparent else "")
    pixels = np.array(image.convert(mode))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _deep(path: Path, image: PIL.Image.Image, header: Header) -> NDArray[np.uint16]:
    """16 bits, of the same shape. Pillow decodes them whole, and keeps of colours only one byte: it is asked twice."""
    assert isinstance(image, ImageFile)
    raw = next((tile.args if isinstance(tile.args, str) else (tile.args or ("",))[0] for tile in image.tile), "")
    kind = raw.partition(";16")[0]
    if not header.plain_16bit or kind not in ("I", "LA", "RGB", "RGBA"):
        raise not_plain(path)
    key = image.info.get("transparency")
    pixels: NDArray[np.uint16]
    if kind == "I":
        pixels = np.asarray(image).astype(np.uint16)[..., None]
    elif kind == "LA":
        both = _decoded_as(path, "RGBA")  # the four bytes as they lie there
        pixels = _joined(both[..., ::2], both[..., 1::2])
    else:
        pixels = _joined(np.asarray(image), _decoded_as(path, f"{kind};16{_OTHER_ORDER[raw[-1]]}"))
    if key is not None:  # a colour that stands for nothing
        opaque = (pixels != np.asarray(key, dtype=np.uint16)).any(axis=2, keepdims=True)
        pixels = np.concatenate([pixels, np.where(opaque, np.uint16(65535), np.uint16(0))], axis=2)
    return pixels


def _joined(high: NDArray[np.uint8], low: NDArray[np.uint8]) -> NDArray[np.uint16]:
    values = high.astype(np.uint16)
    values <<= 8
    values |= low
    return values


def _decoded_as(path: Path, raw: str) -> NDArray[np.uint8]:
    """What Pillow makes of a file if it is told how the bytes of a pixel lie."""
    with PIL.Image.open(path) as image:
        image.tile = [
            tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw) for tile in image.tile
        ]
        return np.asarray(image)


def _from_cmyk(
    image: PIL.Image.Image, icc: bytes | None, path: Path, notes: Notes
) -> tuple[PIL.Image.Image, bytes | None]:
    """RGB and its profile: sRGB, by the profile of the inks if there is one."""
    from PIL import ImageCms

    notes.add("CMYK images converted to RGB", path.name)
    if icc is None:
        return image.convert("RGB"), None
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    try:
        inks = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        converted = ImageCms.profileToProfile(image, inks, srgb, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        notes.add(_LEFT_OUT, path.name)
        return image.convert("RGB"), None
    assert converted is not None  # not in place
    return converted, srgb.tobytes()


def _dpi(value: Any) -> tuple[float, float] | None:
    try:
        across, down = (float(each) for each in value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (across, down) if 0 < across < math.inf and 0 < down < math.inf else None


def _exif_to_keep(exif: PIL.Image.Exif, path: Path, notes: Notes) -> bytes | None:
    """What tells of the picture, the camera and the place."""
    kept = PIL.Image.Exif()
    kept.endian = exif.endian
    try:
        for tag, value in directories(exif).items():
            if tag not in _STRUCTURE:
                kept[tag] = 1 if tag == EXIF_ORIENTATION else value
        return kept.tobytes() if len(kept) else None
    except Exception:  # cameras and editors write odd things there; Pillow trips over them in many ways
        notes.add("images stripped of damaged EXIF data", path.name)
        return None


def directories(exif: PIL.Image.Exif) -> dict[int, Any]:
    """All of EXIF's tags; where Pillow gives the offset of a directory in the file, the directory itself."""
    tags = dict(exif.items())
    for tag in (EXIF_IFD, GPS_IFD):
        if tag in tags:
            tags[tag] = dict(exif.get_ifd(tag))
    if INTEROP_IFD in tags.get(EXIF_IFD, ()):
        tags[EXIF_IFD][INTEROP_IFD] = dict(exif.get_ifd(INTEROP_IFD))
    return tags
