"""Finding image files: in folders, in lists, in the layout of published sets, and the LR file of each."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from eco_fast.data.notes import first_names
from eco_fast.errors import UserError

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})

_BY_FILES = frozenset({"thumbs.db", "desktop.ini"})  # file managers leave them in any folder, unasked


def find_images(path: Path) -> list[Path]:
    """All images a path stands for, in a fixed order.

    A folder is searched with its subfolders, sorted by path; a `.txt` file lists one image per line, relative to the
    file, in its own order (blank lines and lines that start with # are skipped); an image file is itself.
    Hidden files and folders are passed over. Any other file that is not an image is an error: a forgotten archive or
    a half-copied download among the images is worth a question.

    Raises:
        UserError: The path is missing or unreadable, holds no image, or holds a file that is not an image.
    """
    path = Path(path)
    if path.is_dir():
        return _in_folder(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; name a folder of images or a .txt file that lists them")
    if path.suffix.lower() == ".txt":
        return _in_list(path)
    if path.suffix.lower() not in EXTENSIONS:
        raise UserError(f"{path} is not an image; name a folder of images or a .txt file that lists them")
    return [path]


def hr_folder(path: Path) -> Path:
    """The folder of HR images that a path stands for: `HR` in it, in the usual layout of published sets."""
    return path / "HR" if (path / "HR").is_dir() and any(path.glob("LR*")) else path


def unique(files: Iterator[Path]) -> list[Path]:
    """Each file once, whatever its names, in order of first appearance."""
    return list({file.resolve(): file for file in reversed(list(files))}.values())[::-1]


def pair_files(files: list[Path], lr_dir: Path, scale: int) -> list[Path | None]:
    """The LR file of every HR file."""
    folder = lr_dir / f"X{scale}" if (lr_dir / f"X{scale}").is_dir() else lr_dir
    found = find_images(folder)
    by_stem = {file.stem: file for file in found}
    twice = [stem for side in (found, files) for stem, n in Counter(file.stem for file in side).items() if n > 1]
    if twice:
        raise UserError(f"LR images are paired by name, but {first_names(twice)} occur more than once; rename them")
    pairs = {file: by_stem.get(f"{file.stem}x{scale}", by_stem.get(file.stem)) for file in files}
    missing = [file.name for file, lr in pairs.items() if lr is None]
    if missing:
        raise UserError(
            f"{len(missing)} training images have no LR image NAMEx{scale} or NAME in {folder}: "
            f"{first_names(missing)}; add them, or leave the LR folder out"
        )
    return [lr for lr in pairs.values() if lr is not None]


def _in_folder(folder: Path) -> list[Path]:
    def unreadable(error: OSError) -> None:
        raise UserError(f"cannot read folder {error.filename}: {error.strerror}; fix its permissions") from error

    found: list[Path] = []
    seen = {os.path.realpath(folder)}
    for root, subfolders, files in os.walk(folder, onerror=unreadable, followlinks=True):
        # Data sets are often linked in; a link back to a folder above must not loop.
        fresh = {name: os.path.realpath(Path(root, name)) for name in sorted(subfolders) if not name.startswith(".")}
        subfolders[:] = [name for name, real in fresh.items() if real not in seen]
        seen.update(fresh.values())
        for name in files:
            if name.startswith(".") or name.lower() in _BY_FILES:
                continue
            if Path(name).suffix.lower() not in EXTENSIONS:
                raise UserError(
                    f"{Path(root, name)} is not an image; remove it, or list the images of {folder} in a .txt file"
                )
            found.append(Path(root, name))
    if not found:
        raise UserError(f"no images in {folder}; put PNG, JPEG, WebP, BMP or TIFF files there")
    return sorted(found)


def _in_list(listing: Path) -> list[Path]:
    try:
        lines = listing.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {listing}: {error}; write one image path per line, in UTF-8") from error
    found: list[Path] = []
    for number, line in enumerate(lines, start=1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        image = listing.parent / entry
        if image.suffix.lower() not in EXTENSIONS:
            raise UserError(f"line {number} of {listing} is not an image: {entry}; fix or remove that line")
        if not image.is_file():
            raise UserError(f"line {number} of {listing}: {image} does not exist; fix or remove that line")
        found.append(image)
    if not found:
        raise UserError(f"{listing} lists no images; write one image path per line")
    return found
