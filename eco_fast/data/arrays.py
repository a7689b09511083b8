"""The arrays of a store: `.npy` files of uint8 `(H, W, 3)` in C order, written, read and mapped.

NumPy's own reader hands the header to Python's parser, which fails now and then where threads read at once
(https://github.com/python/cpython/issues/106905, Python 3.11.0 to 3.11.7 and 3.12.0 to 3.12.1).
"""

import math
import os
import re
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from eco_fast.data.pixels import Image
from eco_fast.files import moved_when_complete

Shape = tuple[int, ...]  # (H, W, 3)
_HEADER = re.compile(rb"\{'descr': '\|u1', 'fortran_order': False, 'shape': \((\d+), (\d+), (3)\), \} *\n")


def save_array(path: Path, array: Image) -> None:
    """Write an array under a temporary name and rename it.

    Raises:
        OSError: The file cannot be written; what was there is untouched.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with moved_when_complete(temporary, path), temporary.open("wb") as file:
        np.lib.format.write_array(file, np.ascontiguousarray(array), version=(1, 0))


def load_array(path: Path) -> Image:
    """An array in memory.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no array of a store, or cut short.
    """
    with path.open("rb") as file:
        shape = _read_shape(file)
        pixels = np.fromfile(file, np.uint8, math.prod(shape))
    return pixels.reshape(shape)


def map_array(path: Path) -> Image:
    """An array whose pages are read when they are used. Its file does not stay open: a system allows a thousand.

    Raises:
        OSError, ValueError: As `load_array`.
        RuntimeError: The system maps no more.
    """
    with path.open("rb") as file:
        shape = _read_shape(file)
        start = file.tell()
    whole = torch.from_file(str(path), size=start + math.prod(shape), dtype=torch.uint8)
    mapped: Image = whole[start:].view(shape).numpy()
    return mapped


def _read_shape(file: BinaryIO) -> Shape:
    """The shape that the header tells; the file is then at the first pixel."""
    version = np.lib.format.read_magic(file)
    header = file.read(int.from_bytes(file.read(2), "little"))
    found = _HEADER.fullmatch(header)
    if version != (1, 0) or found is None:
        raise ValueError("it is no array of uint8 (H, W, 3) as a store holds it")
    shape = tuple(map(int, found.groups()))
    if os.fstat(file.fileno()).st_size < file.tell() + math.prod(shape):
        raise ValueError(f"it is too short for {shape}")
    return shape
