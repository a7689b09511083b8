"""Decoding many images at once: DALI where it is fast and agrees with Pillow to the bit, Pillow elsewhere."""

import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageOps
from PIL import __version__ as pillow_version
from torch.utils.dlpack import from_dlpack

from eco_fast.data.dali import Dali, load_dali
from eco_fast.data.header import Header, not_plain, note_conversions, opened, png_chunks, too_deep, unreadable
from eco_fast.data.notes import Notes
from eco_fast.data.pixels import Image
from eco_fast.errors import UserError
from eco_fast.extras import install

BY_PILLOW = "images decoded by Pillow, since DALI cannot"  # a note that is no fault of the image

# DALI takes a truncated BMP and a TIFF with damaged data without a word, and rounds some TIFF modes otherwise.
_TRUSTED = frozenset({"JPEG", "MPO", "PNG", "WEBP"})
_BAND = 128  # rows


class Decoded(NamedTuple):
    """An image and what decoded it."""

    pixels: Image
    decoder: str  # name and version


def read_image(path: Path, notes: Notes) -> Image:
    """Decode an image by Pillow, upright (EXIF orientation), as `(H, W, 3)` uint8 RGB.

    Args:
        path: The file.
        notes: Where conversions are counted.

    Raises:
        UserError: The file cannot be decoded, or has more than 8 bits per channel (found in its header).
    """
    with opened(path) as (image, header):
        pixels = _by_pillow(path, image, header)
    note_conversions(header, path, notes)
    return pixels


class Decoder:
    """Files to pixels; may be called from several threads, each of which gets a DALI pipeline of its own.

    Pipelines of one image each decode as many images per second as one pipeline with as many threads, and a broken
    file stops no other.
    """

    def __init__(self, *, allow_16bit: bool = False) -> None:
        """Nothing is read yet.

        Args:
            allow_16bit: Round 16 bits per channel to 8 instead of refusing them.

        Raises:
            UserError: Rounding is asked for, and DALI, which it needs, is not installed.
        """
        self._allow_16bit, self._own = allow_16bit, threading.local()
        self._dali: Dali | None
        try:
            self._dali = load_dali("files")
        except UserError as error:
            if allow_16bit:
                raise UserError(
                    "--allow-16bit needs NVIDIA DALI, which cannot be imported; "
                    f"{install('dali')}, or convert the images to 8 bit"
                ) from error
            self._dali = None

    def __call__(self, path: Path, notes: Notes) -> Decoded:
        """The image, upright, `(H, W, 3)` uint8 RGB.

        Raises:
            UserError: The file cannot be decoded, or has more than 8 bits per channel and may not be rounded.
        """
        with opened(path) as (image, header):
            decoded = self._by_dali(path, header, notes)
            if decoded is None:
                decoded = Decoded(_by_pillow(path, image, header), f"Pillow {pillow_version}")
        note_conversions(header, path, notes)
        return decoded

    def _by_dali(self, path: Path, header: Header, notes: Notes) -> Decoded | None:
        """None where Pillow has to decode."""
        if self._dali is None or (header.deep and not self._allow_16bit):
            return None
        if header.deep:
            return Decoded(self._rounded(path, header), self._dali.name)
        if header.format not in _TRUSTED:
            return None
        if not (header.format == "WEBP" and header.exif):  # of which it is known that DALI cannot
            try:
                return Decoded(self._run(path, deep=False), self._dali.name)
            except RuntimeError:
                self._own.pipelines = {}  # nothing promises that one goes on after an error
        notes.add(BY_PILLOW, path.name, tolerated=True)
        return None

    def _rounded(self, path: Path, header: Header) -> Image:
        if not header.plain_16bit:
            raise not_plain(path)
        try:
            return to_8bit(self._run(path, deep=True))
        except RuntimeError as error:
            self._own.pipelines = {}
            raise unreadable(path, ValueError("DALI cannot decode its 16 bits")) from error

    def _run(self, path: Path, *, deep: bool) -> NDArray[Any]:
        """Decode by this thread's pipeline; the result lies in memory that DALI takes back once it is dropped."""
        if not hasattr(self._own, "pipelines"):
            self._own.pipelines = {}
        if deep not in self._own.pipelines:
            self._own.pipelines[deep] = self._pipeline(deep)
        name = np.frombuffer(str(path).encode(), dtype=np.uint8)
        (output,) = self._own.pipelines[deep].run(path=[name])
        pixels: NDArray[Any] = from_dlpack(output.as_tensor())[0].numpy()
        return pixels

    def _pipeline(self, deep: bool) -> Any:
        assert self._dali is not None
        pipeline_type, fn, types, _ = self._dali
        pipeline = pipeline_type(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
        with pipeline:
            encoded = fn.io.file.read(fn.external_source(name="path"))
            dtype = types.UINT16 if deep else types.UINT8
            pipeline.set_outputs(fn.decoders.image(encoded, device="cpu", output_type=types.RGB, dtype=dtype))
        return pipeline


def _by_pillow(path: Path, image: PIL.Image.Image, header: Header) -> Image:
    if header.deep:
        raise too_deep(path)
    refuse_damaged(path, header)
    return np.array(ImageOps.exif_transpose(image).convert("RGB"))  # a copy: PyTorch wants it writable


def refuse_damaged(path: Path, header: Header) -> None:
    """Look at what Pillow's decoding alone does not: the checksums of a PNG, and whether its end is there.

    Raises:
        OSError, SyntaxError: It is damaged.
    """
    if header.format == "PNG":
        with PIL.Image.open(path) as whole:
            whole.verify()
        if all(kind != b"IEND" for kind, _, _ in png_chunks(path)):
            raise OSError("truncated PNG file")


def to_8bit(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """16 bits to 8: v to round(v / 257), so that 0 stays black and 65535 becomes 255. There are no ties.

    In bands of rows, since the sum needs 32 bits: memory stays bounded for images of any size.

    Args:
        pixels: uint16 of any shape; uint8 is given back as it is.
    """
    if pixels.dtype == np.uint8:
        return pixels
    rounded = np.empty(pixels.shape, dtype=np.uint8)
    for top in range(0, len(pixels), _BAND):
        band = pixels[top : top + _BAND].astype(np.uint32)
        rounded[top : top + _BAND] = (band + 128) // 257
    return rounded
