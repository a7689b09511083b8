"""What the header of an image file says: size, orientation, and what decoding will convert."""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from eco_fast.data.notes import Notes
from eco_fast.errors import UserError

_CONVERSIONS = {  # Pillow mode -> note
    "1": "greyscale images converted to RGB",
    "L": "greyscale images converted to RGB",
    "LA": "images with an alpha channel that was dropped",
    "PA": "images with an alpha channel that was dropped",
    "RGBA": "images with an alpha channel that was dropped",
    "P": "palette images converted to RGB",
    "CMYK": "CMYK images converted to RGB",
}

GREY_MODES = frozenset({"1", "L", "LA", "La"})
"""Pillow's modes of grey in 8 bits, with transparency or without."""

_TIFF_BITS_PER_SAMPLE, _TIFF_PHOTOMETRIC, _TIFF_PLANAR, _TIFF_SAMPLE_FORMAT = 258, 262, 284, 339
EXIF_ORIENTATION = 0x0112
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class Header(NamedTuple):
    """What an image's header says about decoding it."""

    format: str  # Pillow's name
    mode: str  # Pillow's
    frames: int
    deep: bool  # more than 8 bits per channel
    plain_16bit: bool  # deep, and of a kind that can be rounded to 8 bit
    exif: bool


def image_size(path: Path, notes: Notes | None = None) -> tuple[int, int]:
    """Height and width of the upright image, from its header.

    Args:
        path: The file.
        notes: Where the conversions that decoding will make are counted; None does not look for any.

    Raises:
        UserError: The file cannot be read, or has more than 8 bits per channel and `notes` are given.
    """
    with opened(path) as (image, header):
        if notes is not None:
            if header.deep:
                raise too_deep(path)
            note_conversions(header, path, notes)
        lies = exif_of(path, image).get(EXIF_ORIENTATION, 1) >= 5
        return (image.width, image.height) if lies else (image.height, image.width)


@contextmanager
def opened(path: Path) -> Iterator[tuple[Image.Image, Header]]:
    """An image file, opened by Pillow but not decoded, and its header.

    Raises:
        UserError: It cannot be read, by the header or by what the caller does inside.
    """
    try:
        with Image.open(path) as image:
            yield image, header_of(image)
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and others
        raise unreadable(path, error) from error


def note_conversions(header: Header, path: Path, notes: Notes) -> None:
    """Count what decoding converts."""
    if header.deep:
        notes.add("16-bit images rounded to 8 bit", path.name)
    elif header.mode != "RGB":
        notes.add(_CONVERSIONS.get(header.mode, f"{header.mode} images converted to RGB"), path.name)
    if header.frames > 1 and header.format != "MPO":  # a camera's JPEG may carry previews behind it
        notes.add("images with several frames, the first one taken", path.name)


def header_of(image: Image.Image) -> Header:
    """Of an image that Pillow has opened."""
    deep = bool(_is_deep(image))
    return Header(
        format=image.format or "",
        mode=image.mode,
        frames=getattr(image, "n_frames", 1),
        deep=deep,
        plain_16bit=deep and _is_plain_16bit(image),
        exif="exif" in image.info,
    )


def exif_of(path: Path, image: Image.Image) -> Image.Exif:
    """What Pillow's `getexif` gives, which decodes a whole PNG to see whether something comes behind its pixels."""
    if image.format != "PNG" or "exif" in image.info or "Raw profile type exif" in image.info:
        return image.getexif()
    exif = Image.Exif()
    for kind, start, length in png_chunks(path):
        if kind == b"eXIf":
            with path.open("rb") as file:
                file.seek(start)
                exif.load(b"Exif\0\0" + file.read(length))
    return exif


def png_chunks(path: Path) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and length of every chunk whose end is in the file."""
    with path.open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        start = len(_PNG_SIGNATURE) + 8
        file.seek(start - 8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if start + length + 4 > end:  # its checksum included
                return
            yield kind, start, length
            start = file.seek(length + 4, os.SEEK_CUR) + 8


def _is_deep(image: Image.Image) -> bool:
    """Whether the header says more than 8 bits per channel; Pillow would hand out the upper 8 without a word."""
    if image.format == "PNG":
        return any("16" in str(tile.args) for tile in getattr(image, "tile", ()))
    return max(np.atleast_1d(_tag(image, _TIFF_BITS_PER_SAMPLE, 8))) > 8 or image.mode.startswith(("I", "F"))


def _is_plain_16bit(image: Image.Image) -> bool:
    """Whether a deep image is of the usual kind: unsigned 16-bit RGB or grey, black at 0, channels interleaved."""
    if image.format == "PNG":
        return True
    kinds = {_TIFF_BITS_PER_SAMPLE: {16}, _TIFF_SAMPLE_FORMAT: {1}, _TIFF_PHOTOMETRIC: {1, 2}, _TIFF_PLANAR: {1}}
    return image.format == "TIFF" and all(
        set(np.atleast_1d(_tag(image, tag, 1)).tolist()) <= allowed for tag, allowed in kinds.items()
    )


def _tag(image: Image.Image, number: int, default: int) -> int | tuple[int, ...]:
    value: int | tuple[int, ...] = getattr(image, "tag_v2", {}).get(number, default)
    return value


def too_deep(path: Path) -> UserError:
    """What to raise for an image of more than 8 bits per channel."""
    return UserError(
        f"{path} has more than 8 bits per channel; convert it to 8 bit, or prepare a store with --allow-16bit"
    )


def not_plain(path: Path) -> UserError:
    """What to raise for an image of more than 8 bits per channel of which these are not to be had."""
    return UserError(f"{path} is not unsigned 16-bit RGB or grey, interleaved; convert it to 8 bit")


def unreadable(path: Path, error: Exception) -> UserError:
    """What to raise for an image that cannot be decoded."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"cannot read image {path}: {reason}; replace or remove it")
