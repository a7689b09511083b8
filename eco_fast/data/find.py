"""Finding image files: in folders, in lists, in the layout of published sets, and the LR file of each."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from eco_fast.data.notes import Notes, first_names
from eco_fast.errors import UserError

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif"})

_BY_FILES = frozenset({"thumbs.db", "desktop.ini"})  # file managers leave them in any folder, unasked
# Endings of what a person may take for images that are read, by what is said of them.
_MISTAKABLE = {
    "picture files in a format that is not read": (
        "avif heic heif jxl jp2 j2k psd xcf svg tga ppm pgm pnm exr hdr ico eps raw dng cr2 cr3 nef arw orf raf rw2"
    ),
    "archive files among the images, not unpacked": "zip tar gz tgz bz2 xz zst 7z rar",
    "half-copied files among the images, not read": "part partial crdownload download tmp",
}
_PICTURES, *_ = _MISTAKABLE
_OTHERS = "other files among the images, passed over"

OnFault = Callable[[UserError], None]


def find_images(path: Path, notes: Notes | None = None, on_fault: OnFault | None = None) -> list[Path]:
    """All images a path stands for, in a fixed order.

    A folder is searched with its subfolders, sorted by path; a `.txt` file lists one image per line, relative to the
    file, in its own order (blank lines and lines that start with # are skipped); an image file is itself.
    Hidden files and folders are passed over, other files are counted in the notes. Of these a README is no fault, but
    an archive, a half-copied download or a picture of a format that is not read is an error under `--strict`.

    Args:
        path: A folder, a list, or an image.
        notes: Where files of a folder that are not read are counted.
        on_fault: Takes what is wrong with a part of a folder or a list, and with pictures that are not read; the other
            images are found all the same. By default the first such thing is raised.

    Raises:
        UserError: The path is missing, unreadable, or holds no image; a folder below cannot be read; a line of a list
            names no image. Where `on_fault` is given, for a missing path alone.
    """
    path = Path(path)
    search = _Search(notes, on_fault)
    if path.is_dir():
        return search.folder(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; name a folder of images or a .txt file that lists them")
    if path.suffix.lower() == ".txt":
        return search.listing(path)
    if path.suffix.lower() in EXTENSIONS:
        return [path]
    if on_fault is None:
        raise UserError(f"{path} is not an image; name a folder of images or a .txt file that lists them")
    search.other(path)
    return []


def hr_folder(path: Path) -> Path:
    """The folder of HR images that a path stands for: `HR` in it, in the usual layout of published sets."""
    return path / "HR" if (path / "HR").is_dir() and any(path.glob("LR*")) else path


def unique(files: Iterator[Path]) -> list[Path]:
    """Each file once, whatever its names, in order of first appearance."""
    return list({file.resolve(): file for file in reversed(list(files))}.values())[::-1]


def pair_files(files: list[Path], lr_dir: Path, scale: int) -> list[Path | None]:
    """The LR file of every HR file."""
    folder = lr_dir / f"X{scale}" if (lr_dir / f"X{scale}").is_dir() else lr_dir
    found = find_images(folder)  # without notes: what else lies there has no part in the pairs
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


class _Search:
    """One call of `find_images`: where it tells of what is no image."""

    def __init__(self, notes: Notes | None, on_fault: OnFault | None) -> None:
        self._notes, self._on_fault = notes, on_fault

    def folder(self, folder: Path) -> list[Path]:
        found: list[Path] = []
        seen = {os.path.realpath(folder)}
        for root, subfolders, files in os.walk(folder, onerror=self._unreadable, followlinks=True):
            # Data sets are often linked in; a link back to a folder above must not loop.
            fresh = {
                name: os.path.realpath(Path(root, name)) for name in sorted(subfolders) if not name.startswith(".")
            }
            subfolders[:] = [name for name, real in fresh.items() if real not in seen]
            seen.update(fresh.values())
            for name in sorted(files):
                if name.startswith(".") or name.lower() in _BY_FILES:
                    continue
                file = Path(root, name)
                if file.suffix.lower() in EXTENSIONS:
                    found.append(file)
                else:
                    self.other(file)
        if not found:
            self._fault(f"no images in {folder}; put PNG, JPEG, WebP, BMP, TIFF or GIF files there")
        return sorted(found)

    def listing(self, listing: Path) -> list[Path]:
        try:
            lines = listing.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            self._fault(f"cannot read {listing}: {error}; write one image path per line, in UTF-8", error)
            return []
        named = {n: entry for n, line in enumerate(lines, 1) if (entry := line.strip()) and not entry.startswith("#")}
        if self._on_fault is not None and all(Path(entry).suffix.lower() not in EXTENSIONS for entry in named.values()):
            self.other(listing)  # a text that lies among images, not a list of them
            return []
        found: list[Path] = []
        for number, entry in named.items():
            image = listing.parent / entry
            if image.suffix.lower() not in EXTENSIONS:
                self._fault(f"line {number} of {listing} is not an image: {entry}; fix or remove that line")
            elif not image.is_file():
                self._fault(f"line {number} of {listing}: {image} does not exist; fix or remove that line")
            else:
                found.append(image)
        if not found:
            self._fault(f"{listing} lists no images; write one image path per line")
        return found

    def other(self, file: Path) -> None:
        """Tell of a file that is no image."""
        ending = file.suffix.lower().removeprefix(".")
        kind = next((kind for kind, endings in _MISTAKABLE.items() if ending in endings.split()), _OTHERS)
        if kind == _PICTURES and self._on_fault is not None:
            self._fault(f"{file} is of a format that is not read; convert it to PNG")
        elif self._notes is not None:
            self._notes.add(kind, file.name, tolerated=kind == _OTHERS)

    def _unreadable(self, error: OSError) -> None:
        self._fault(f"cannot read folder {error.filename}: {error.strerror}; fix its permissions", error)

    def _fault(self, line: str, cause: Exception | None = None) -> None:
        if self._on_fault is None:
            raise UserError(line) from cause
        self._on_fault(UserError(line))
