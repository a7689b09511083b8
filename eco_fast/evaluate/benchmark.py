"""Pairs of LR and HR images to evaluate on: a folder of HR images, or the layout of the published sets."""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eco_fast.data.decode import read_image
from eco_fast.data.find import find_images
from eco_fast.data.header import GREY_MODES, opened
from eco_fast.data.notes import Notes, first_names
from eco_fast.data.pixels import bicubic_lr, crop_to_multiple, one_torch_thread
from eco_fast.errors import UserError
from eco_fast.evaluate.metrics import SSIM_WINDOW

_MAX_LOADERS = 16  # threads


class Pair(NamedTuple):
    """An HR image and its LR image."""

    name: str  # of the HR file, without extension, relative to its folder
    hr: NDArray[np.uint8]  # (scale h, scale w, 3)
    lr: NDArray[np.uint8]  # (h, w, 3)
    grey: bool = False  # to be compared by its grey values


def load_benchmark(
    path: Path, scale: int, lr_dir: Path | None, notes: Notes, *, grey_values: bool = False
) -> list[Pair]:
    """Read a set of images, sorted by name. HR is cropped to a multiple of the scale.

    LR comes from `lr_dir`, or from `LR_bicubic/X{scale}` beside `HR`, or is made from HR by the exact 8-bit bicubic.

    Args:
        path: Folder of HR images, a `.txt` file that lists them, or a folder with `HR` and perhaps `LR_bicubic` inside.
        scale: 2, 3 or 4.
        lr_dir: LR images NAME or NAMEx{scale}, with any image extension, in it or in its `X{scale}`.
        notes: Takes the conversions and crops.
        grey_values: Have images of one channel compared by their grey values, not as RGB.

    Raises:
        UserError: Paths or images are missing or unreadable, LR does not fit HR by name or size, or an image is too
            small for the metrics.
    """
    path = Path(path)
    root = path / "HR" if (path / "HR").is_dir() else path
    files = _by_name(find_images(root, notes), root)
    published = path / "LR_bicubic" / f"X{scale}"
    if lr_dir is None and root != path and published.is_dir():
        lr_dir = published
    lr_files = None if lr_dir is None else _match(list(files), Path(lr_dir), scale)

    def load(name: str) -> Pair:
        hr = _hr(files[name], scale, notes)
        lr = bicubic_lr(hr, scale) if lr_files is None else read_image(lr_files[name], notes)
        return Pair(name, hr, lr, grey=grey_values and _is_grey(files[name]))

    with one_torch_thread(), ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_LOADERS)) as pool:
        pairs = list(pool.map(load, files))
    wrong = [
        f"{name} ({lr.shape[1]} x {lr.shape[0]} for {hr.shape[1]} x {hr.shape[0]})"
        for name, hr, lr, _ in pairs
        if (lr.shape[0] * scale, lr.shape[1] * scale) != hr.shape[:2]
    ]
    if wrong:
        raise UserError(
            f"{len(wrong)} of {len(pairs)} LR images in {lr_dir} are not 1/{scale} of their HR images: "
            f"{first_names(wrong)}; give the LR images of these HR images at x{scale}, or leave the LR folder out"
        )
    return pairs


def _is_grey(file: Path) -> bool:
    with opened(file) as (_, header):
        return header.mode in GREY_MODES


def _hr(file: Path, scale: int, notes: Notes) -> NDArray[np.uint8]:
    whole = read_image(file, notes)
    hr = crop_to_multiple(whole, scale)
    if min(hr.shape[:2]) < 2 * scale + SSIM_WINDOW:
        raise UserError(
            f"{file} is too small to evaluate at x{scale}; "
            f"leave it out, or give images of at least {2 * scale + SSIM_WINDOW} pixels a side"
        )
    if hr.shape != whole.shape:
        notes.add(f"images cropped to a multiple of {scale}", file.name, tolerated=True)
    return hr


def benchmark_name(path: Path) -> str:
    """What a set is called in tables: its folder's name, "Set5" for `.../Set5` and for `.../Set5/HR`."""
    path = Path(path).resolve()
    return path.parent.name if path.name == "HR" and path.parent.name else path.stem if path.is_file() else path.name


def _by_name(files: Sequence[Path], root: Path) -> dict[str, Path]:
    """The files by their path below `root`, or by file name for a list, without extension."""
    names = [
        (file.relative_to(root) if root.is_dir() else Path(file.name)).with_suffix("").as_posix() for file in files
    ]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"several images in {root} are named {first_names(twice)}; rename them")
    return dict(zip(names, files, strict=True))


def _match(names: list[str], lr_dir: Path, scale: int) -> dict[str, Path]:
    """The LR file of every HR name."""
    folder = lr_dir / f"X{scale}" if (lr_dir / f"X{scale}").is_dir() else lr_dir
    found = _by_name(find_images(folder), folder)
    matches = {name: found.get(f"{name}x{scale}", found.get(name)) for name in names}
    if missing := [name for name, file in matches.items() if file is None]:
        raise UserError(
            f"{len(missing)} of {len(names)} HR images have no LR image NAMEx{scale} or NAME in {folder}: "
            f"{first_names(missing)}; add them, or leave the LR folder out"
        )
    return {name: file for name, file in matches.items() if file is not None}
