"""A prepared store: every training image decoded once, with the exact LR of every scale, as plain arrays on disk.

    STORE/index.json                 what is in it, where it came from, a checksum of every array
    STORE/hr/KEY.npy                 uint8 (H, W, 3) RGB, the whole image
    STORE/lr_x2/KEY.npy              uint8 (H // 2, W // 2, 3): MATLAB's bicubic of it, or the user's own LR
    STORE/centroid_x2_ID/KEY.npy     uint8, the SR of that LR by the teacher whose weights hash to ID
    STORE/centroid_lr_x2_ID/KEY.npy  its MATLAB bicubic

Nothing of a store is used that does not have the size and the checksum of the index.
"""

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from eco_fast.data.arrays import load_array
from eco_fast.data.decode import BY_PILLOW
from eco_fast.data.find import find_images, hr_folder
from eco_fast.data.flat import FlatImages, Progress, TrainingSet
from eco_fast.data.notes import Notes, first_names
from eco_fast.data.pixels import Image
from eco_fast.errors import UserError
from eco_fast.files import write_atomically

FORMAT = 2
INDEX = "index.json"
_CHECKED = ".checked.json"  # files that were found right, with size and time: they need not be read again
_THREADS = 8


def hr_kind() -> str:
    """Folder of the HR images."""
    return "hr"


def lr_kind(scale: int) -> str:
    """Folder of the LR images of a scale."""
    return f"lr_x{scale}"


def centroid_kind(scale: int, teacher: str) -> str:
    """Folder of the centroids of a teacher."""
    return f"centroid_x{scale}_{teacher}"


def centroid_lr_kind(scale: int, teacher: str) -> str:
    """Folder of the LR of these centroids."""
    return f"centroid_lr_x{scale}_{teacher}"


class OwnLr(NamedTuple):
    """The user's own LR file of an image."""

    scale: int
    path: str  # absolute
    size: int  # bytes
    mtime_ns: int


@dataclass(frozen=True)
class Entry:
    """One image of a store."""

    key: str  # name of its arrays
    source: str  # absolute path of the image file
    size: int  # bytes of that file
    mtime_ns: int
    height: int  # pixels, upright
    width: int
    notes: tuple[str, ...]  # what decoding converted
    decoder: str  # name and version of what decoded it
    own_lr: OwnLr | None
    crc32: Mapping[str, int]  # of the pixels of each array, by its folder

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> "Entry":
        """Back from JSON; raises KeyError, TypeError or ValueError for anything else."""
        own = record["own_lr"]
        return cls(
            **{name: record[name] for name in ("key", "source", "size", "mtime_ns", "height", "width", "decoder")},
            notes=tuple(record["notes"]),
            own_lr=None if own is None else OwnLr(*own),
            crc32=dict(record["crc32"]),
        )

    def shape(self, kind: str) -> tuple[int, int, int]:
        """Of an array, by its folder."""
        if kind == "hr":
            return self.height, self.width, 3
        scale = int(kind.split("_x")[1].split("_")[0])
        height, width = self.height // scale, self.width // scale
        return (height * scale, width * scale, 3) if kind.startswith("centroid_x") else (height, width, 3)


@dataclass(frozen=True)
class PreparedStore:
    """An opened store; its arrays were checked."""

    path: Path
    entries: tuple[Entry, ...]
    notes: Notes

    @classmethod
    def open(cls, path: Path, *, recheck: bool = False, progress: Progress | None = None) -> "PreparedStore":
        """Read the index and check everything it says.

        A file is read to check it only when it changed since it was last found right.

        Args:
            path: Folder of the store.
            recheck: Read every file, whatever was found before.
            progress: Called with (done, total) files.

        Raises:
            UserError: It is no store or one of another format, a source image changed, an array is missing or damaged.
        """
        entries, inputs = _images_and_inputs(path)
        notes = Notes()
        for entry in entries:
            for kind in entry.notes:
                notes.add(kind, Path(entry.source).name, tolerated=kind == BY_PILLOW)
        _check_sources(path, inputs, entries, notes)
        _check_arrays(path, entries, recheck, progress)
        return cls(path, entries, notes)

    @cached_property
    def kinds(self) -> set[str]:
        """The folders that hold an array of every image."""
        return _kinds_of_all(self.entries)

    def teachers(self, scale: int) -> list[str]:
        """Hashes of the teachers with centroids at a scale."""
        return _teachers(self.kinds, scale)

    def file(self, kind: str, entry: Entry) -> Path:
        """An array on disk."""
        return self.path / kind / f"{entry.key}.npy"

    def holding(self, scale: int, patch: int, notes: Notes) -> list[Entry]:
        """The images that hold a patch of so many LR pixels; the others, and cropped ones, are noted.

        Raises:
            UserError: There is none, or no LR of that scale.
        """
        if lr_kind(scale) not in self.kinds:
            raise UserError(f"{self.path} has no LR at x{scale}; run eco-fast prepare with --scale {scale}")
        held = []
        for entry in self.entries:
            name, least = Path(entry.source).name, patch * scale
            if min(entry.height // scale, entry.width // scale) < patch:
                notes.add(f"images left out, smaller than a patch ({least} x {least})", name)
                continue
            if entry.height % scale or entry.width % scale:
                notes.add(f"images cropped to a multiple of {scale}", name, tolerated=True)
            held.append(entry)
        if not held:
            raise UserError(
                f"none of the {len(self.entries)} training images holds a patch of {least} x {least} pixels; "
                "give larger images or a smaller data.patch"
            )
        return held

    def training_set(
        self, scale: int, entries: Sequence[Entry], *, teacher: str | None = None, progress: Progress | None = None
    ) -> TrainingSet:
        """Some images in memory, for the source `resident`; on the CPU.

        Args:
            scale: 2, 3 or 4.
            entries: Which images, see `holding`.
            teacher: Hash of the teacher whose centroids are wanted.
            progress: Called with (done, total) arrays.
        """
        kinds = [hr_kind(), lr_kind(scale)]
        if teacher is not None:
            kinds += [centroid_kind(scale, teacher), centroid_lr_kind(scale, teacher)]
        done = 0

        def load(kind: str) -> FlatImages:
            nonlocal done
            shapes = [entry.shape(kind) for entry in entries]
            flat = FlatImages.empty([h for h, _, _ in shapes], [w for _, w, _ in shapes])
            for i, entry in enumerate(entries):
                flat.image(i)[:] = load_array(self.file(kind, entry))
                done += 1
                if progress is not None:
                    progress(done, len(kinds) * len(entries))
            return flat

        hr, lr, *rest = [load(kind) for kind in kinds]
        centroid, centroid_lr = rest or (None, None)
        return TrainingSet(hr, lr, scale, centroid, centroid_lr)


def sizes(entries: list[Entry]) -> tuple[Tensor, Tensor]:
    """Heights and widths of HR, int64 `(N,)`."""
    return torch.tensor([e.height for e in entries]), torch.tensor([e.width for e in entries])


def is_store(path: Path) -> bool:
    """Whether a path is a prepared store, in whatever state."""
    return (path / INDEX).is_file()


def read_index(path: Path) -> dict[str, Any]:
    """The index of a store.

    Raises:
        UserError: There is none, it is damaged, or of another format.
    """
    file = path / INDEX
    if not file.is_file():
        raise UserError(f"{path} is no prepared store, it has no {INDEX}; make one with eco-fast prepare")
    try:
        index: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        found = index["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged ({type(error).__name__}); run eco-fast prepare again") from error
    if found != FORMAT:
        raise UserError(f"{path} has format {found}, this version reads {FORMAT}; make it again with eco-fast prepare")
    return index


def read_entries(path: Path) -> tuple[Entry, ...]:
    """The images of a store by its index alone: nothing is checked, and nothing is written.

    Raises:
        UserError: As `read_index`, or it names no images.
    """
    return _images_and_inputs(path)[0]


def _images_and_inputs(path: Path) -> tuple[tuple[Entry, ...], list[Path]]:
    index = read_index(path)
    try:
        entries = tuple(Entry.parse(record) for record in index["images"])
        inputs = [Path(name) for name in index["inputs"]]
        if not entries:
            raise ValueError("no images")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path / INDEX} is damaged ({error}); run eco-fast prepare again") from error
    return entries, inputs


def stored_teachers(path: Path, scale: int) -> list[str]:
    """As `PreparedStore.teachers`, by the index alone: nothing is checked. Empty where there is no index to be read."""
    try:
        return _teachers(_kinds_of_all([Entry.parse(record) for record in read_index(path)["images"]]), scale)
    except (UserError, KeyError, TypeError, ValueError, AttributeError):
        return []


def _kinds_of_all(entries: Sequence[Entry]) -> set[str]:
    return set.intersection(*(set(entry.crc32) for entry in entries))


def _teachers(kinds: set[str], scale: int) -> list[str]:
    return sorted(kind.rpartition("_")[2] for kind in kinds if kind.startswith(f"centroid_x{scale}_"))


def checksum(image: Image) -> int:
    """Of an array's pixels."""
    return zlib.crc32(np.ascontiguousarray(image).data)


def _check_sources(path: Path, inputs: list[Path], entries: tuple[Entry, ...], notes: Notes) -> None:
    """Refuse a store whose images are not those of its folders any more."""
    known = {entry.source: entry for entry in entries}
    present: set[str] = set()
    for folder in inputs:
        if not folder.exists():  # the store was moved, or the images were removed to make room
            notes.add("input folders are gone, the store is used as it is:", str(folder), tolerated=True)
            listing = folder.suffix.lower() == ".txt"  # and where the images were that it listed is not known
            present |= {source for source in known if listing or Path(source).is_relative_to(folder)}
            continue
        present |= {str(file.resolve()) for file in find_images(hr_folder(folder), notes)}
    changed = [name for name in sorted(present & known.keys()) if _has_changed(known[name])]
    faults = {"new": present - known.keys(), "gone": known.keys() - present, "changed": set(changed)}
    for word, names in faults.items():
        if names:
            raise UserError(
                f"{path} is out of date: {len(names)} source images are {word}: {first_names(sorted(names))}; "
                "run eco-fast prepare again"
            )


def _has_changed(entry: Entry) -> bool:
    """Whether a source file is another one now; one that went with its folder is not."""
    sources = [(entry.source, entry.size, entry.mtime_ns)]
    if entry.own_lr is not None:
        sources.append(entry.own_lr[1:])
    for name, size, mtime_ns in sources:
        try:
            found = Path(name).stat()
        except OSError:
            if name != entry.source and Path(name).parent.is_dir():
                return True
            continue
        if (found.st_size, found.st_mtime_ns) != (size, mtime_ns):
            return True
    return False


class ArrayCheck:
    """Compares arrays on disk with their entries; may be called from several threads.

    A file is read only if it changed since it was last found right, by size and time: `remember` keeps what was found.
    """

    def __init__(self, path: Path, *, recheck: bool = False) -> None:
        """`recheck` reads every file, whatever was found before."""
        self._path, self._before = path, _read_checked(path)
        self._known = {} if recheck else self._before
        self._right: dict[str, list[int]] = {}

    def fault(self, entry: Entry, kind: str) -> str | None:
        """What is wrong with an array, None if nothing is."""
        name = f"{kind}/{entry.key}.npy"
        try:
            found = (self._path / name).stat()
            stamp = [found.st_size, found.st_mtime_ns, entry.crc32[kind]]
            if self._known.get(name) != stamp:
                array = load_array(self._path / name)
                if array.shape != entry.shape(kind) or checksum(array) != entry.crc32[kind]:
                    return f"{name} is damaged"
        except FileNotFoundError:
            return f"{name} is missing"
        except (OSError, ValueError) as error:
            return f"{name} is damaged ({' '.join(str(error).split()) or type(error).__name__})"
        self._right[name] = stamp
        return None

    def remember(self) -> None:
        """Keep what was found right, and forget all else: what a recheck found damaged must not be trusted again."""
        if self._right == self._before:
            return
        try:
            write_atomically(self._path / _CHECKED, json.dumps(self._right).encode())
        except OSError:
            return  # a store on a read-only disk is checked each time


def _check_arrays(path: Path, entries: tuple[Entry, ...], recheck: bool, progress: Progress | None) -> None:
    """Compare size and checksum of every array with the index."""
    check = ArrayCheck(path, recheck=recheck)
    work = [(entry, kind) for entry in entries for kind in sorted(entry.crc32)]
    faults = []
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _THREADS)) as pool:
        for done, fault in enumerate(pool.map(lambda item: check.fault(*item), work), start=1):
            if fault is not None:
                faults.append(fault)
            if progress is not None:
                progress(done, len(work))
    check.remember()
    if faults:
        raise UserError(f"{path}: {first_names(faults)}; run eco-fast prepare again, it makes what is wrong again")


def _read_checked(path: Path) -> dict[str, list[int]]:
    try:
        content = json.loads((path / _CHECKED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
