"""The files of a store: the same arrays as NumPy's own functions, and one line for what is none."""

import ast
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eco_fast.data.arrays import load_array, map_array, save_array
from eco_fast.data.pixels import Image

PIXELS = np.arange(7 * 5 * 3, dtype=np.uint8).reshape(7, 5, 3)
READERS = pytest.mark.parametrize("read", [load_array, map_array])


def no_parser(*_: object) -> object:
    raise SystemError("AST constructor recursion depth mismatch")


@READERS
def test_what_numpy_writes_is_read_without_pythons_parser(
    read: Callable[[Path], Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several threads must not parse at once: Python 3.11.7 then fails now and then."""
    np.save(tmp_path / "array.npy", PIXELS)
    monkeypatch.setattr(ast, "literal_eval", no_parser)
    with pytest.raises(SystemError):
        np.load(tmp_path / "array.npy")
    found = read(tmp_path / "array.npy")
    assert found.dtype == np.uint8 and np.array_equal(found, PIXELS)


@pytest.mark.parametrize("array", [PIXELS, PIXELS[::2, ::-1], PIXELS.transpose(1, 0, 2), PIXELS[:0]])
def test_numpy_reads_what_is_written(array: Image, tmp_path: Path) -> None:
    save_array(tmp_path / "array.npy", array)
    assert [path.name for path in tmp_path.iterdir()] == ["array.npy"]
    for read in (np.load, load_array):
        assert np.array_equal(read(tmp_path / "array.npy"), array)


@READERS
@pytest.mark.parametrize(
    "array",
    [PIXELS.astype(np.int8), PIXELS.astype(np.uint16), np.asfortranarray(PIXELS), PIXELS[..., 0], PIXELS[..., :2]],
    ids=["signed", "16 bits", "Fortran order", "grey", "two channels"],
)
def test_arrays_of_another_kind(read: Callable[[Path], Image], array: Image, tmp_path: Path) -> None:
    np.save(tmp_path / "array.npy", array)
    with pytest.raises(ValueError, match="it is no array of uint8"):
        read(tmp_path / "array.npy")


@READERS
def test_files_that_are_no_arrays(read: Callable[[Path], Image], tmp_path: Path) -> None:
    np.save(tmp_path / "array.npy", PIXELS)
    whole = (tmp_path / "array.npy").read_bytes()
    for end in (0, 4, 8, 9, 60, 127):
        (tmp_path / "cut.npy").write_bytes(whole[:end])
        with pytest.raises(ValueError):
            read(tmp_path / "cut.npy")
    for end in (128, len(whole) - 1):
        (tmp_path / "cut.npy").write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"too short for \(7, 5, 3\)"):
            read(tmp_path / "cut.npy")
    with (tmp_path / "second.npy").open("wb") as file:
        np.lib.format.write_array(file, PIXELS, version=(2, 0))
    with pytest.raises(ValueError, match="it is no array of uint8"):
        read(tmp_path / "second.npy")
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "missing.npy")
