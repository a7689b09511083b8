"""Making and updating a prepared store (see `prepared`).

Arrays are written under temporary names and renamed; an image that is complete gets a line in a journal, which becomes
the index at the end. So a killed run leaves a store that the next run finishes, to the same bytes as one made in one
go. Images whose files did not change, and whose arrays are all there, are not touched again.
"""

import fcntl
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eco_fast.data.images import crop_to_multiple, find_images, image_size, read_image
from eco_fast.data.notes import Notes
from eco_fast.data.prepared import (
    FORMAT,
    INDEX,
    Entry,
    centroid_kind,
    centroid_lr_kind,
    checksum,
    hr_kind,
    lr_kind,
    read_index,
)
from eco_fast.data.store import Image, bicubic_lr, hr_folder, one_torch_thread, pair_files, unique
from eco_fast.errors import UserError
from eco_fast.files import write_atomically

_JOURNAL, _LOCK = ".journal.jsonl", ".lock"
_THREADS = 16
_PIXELS_AT_ONCE = 48_000_000  # in all threads together: some 20 bytes each while an image is decoded and filtered
_HEADROOM = 64 << 20  # bytes of disk that are left alone

Progress = Callable[[int, int, float], None]  # images done, images in all, MB/s


class Teacher(NamedTuple):
    """What makes the centroids."""

    scale: int
    identity: str  # hash of weights and precision, short: part of a folder's name
    sr: Callable[[Image], Image]  # (h, w, 3) uint8 -> (scale h, scale w, 3) uint8


def prepare(
    paths: Sequence[Path],
    scales: Sequence[int],
    out: Path,
    *,
    lr_dir: Path | None = None,
    teacher: Teacher | None = None,
    allow_16bit: bool = False,
    progress: Callable[[str], AbstractContextManager[Progress]] | None = None,
) -> None:
    """Make a store, finish one that was begun, or bring one up to date.

    Args:
        paths: Folders of HR images, or text files of paths, as in `load_training_set`.
        scales: LR scales; those that the store has already are kept.
        out: Folder of the store.
        lr_dir: The user's own LR images instead of the bicubic, for a single scale.
        teacher: Adds its SR of every whole LR image, and the LR of that.
        allow_16bit: Round images of 16 bits per channel to 8 instead of refusing them.
        progress: Name of a pass -> context that gives what is called after each of its images.

    Raises:
        UserError: Images are missing or unreadable, LR does not fit HR, the disk is too small, another run is at work.
    """
    files = unique(file for path in paths for file in find_images(hr_folder(Path(path))))
    if lr_dir is not None and len(scales) != 1:
        raise UserError("LR images of your own have one scale; name just that one with --scale")
    own: list[Path | None] = [None] * len(files) if lr_dir is None else pair_files(files, Path(lr_dir), scales[0])
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        work = _Work(out, [str(Path(path).resolve()) for path in paths], files, own, scales, teacher, allow_16bit)
        work.run(progress or (lambda _: nullcontext(lambda done, total, rate: None)))


class _Work:
    """One call of `prepare`."""

    def __init__(
        self,
        out: Path,
        inputs: list[str],
        files: list[Path],
        own: list[Path | None],
        scales: Sequence[int],
        teacher: Teacher | None,
        allow_16bit: bool,
    ) -> None:
        self.out, self.inputs, self.teacher, self.allow_16bit = out, inputs, teacher, allow_16bit
        known = _known_entries(out)
        self.scales = sorted({*scales, *_scales_of(known.values())})
        self.own_scale = scales[0] if any(own) else None
        self.entries: list[Entry] = []
        self.todo: list[int] = []
        for file, lr_file in zip(files, own, strict=True):
            entry = _blank(file, lr_file)
            old = known.get(entry.key)
            if old is not None and _same_source(old, entry) and self._is_there(old):
                entry = old
            else:
                self.todo.append(len(self.entries))
            self.entries.append(entry)
        self.journal_lock = threading.Lock()
        if (out / _JOURNAL).is_file():
            with (out / _JOURNAL).open("a") as journal:
                journal.write("\n")  # ends a line that a kill cut short

    def run(self, progress: Callable[[str], AbstractContextManager[Progress]]) -> None:
        """Both passes, then the index."""
        self._check_room()
        for folder in {hr_kind(), *map(lr_kind, self.scales), *self._teacher_kinds()}:
            (self.out / folder).mkdir(exist_ok=True)
        with progress("images") as report:
            self._decode_all(report)
        if self.teacher is not None:
            with progress("teacher") as report:
                self._super_resolve_all(self.teacher, report)
        self._finish()

    def _teacher_kinds(self) -> list[str]:
        teacher = self.teacher
        if teacher is None:
            return []
        return [kind(teacher.scale, teacher.identity) for kind in (centroid_kind, centroid_lr_kind)]

    def _is_there(self, entry: Entry) -> bool:
        """Whether decoding has nothing to do for an image: all its arrays are there and right."""
        wanted = {hr_kind(), *map(lr_kind, self.scales)}
        return wanted <= entry.crc32.keys() and all(self._is_right(entry, kind) for kind in entry.crc32)

    def _is_right(self, entry: Entry, kind: str) -> bool:
        try:
            array = np.load(self.out / kind / f"{entry.key}.npy", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return False
        return array.dtype == np.uint8 and array.shape == entry.shape(kind) and checksum(array) == entry.crc32[kind]

    def _check_room(self) -> None:
        """Refuse to start what the disk cannot hold."""
        need = 0
        for i in self.todo:
            height, width = image_size(Path(self.entries[i].source))
            self.entries[i] = replace(self.entries[i], height=height, width=width)
            need += height * width * 3 + sum((height // s) * (width // s) * 3 for s in self.scales)
        if self.teacher is not None:
            kinds = self._teacher_kinds()
            fresh = [entry for entry in self.entries if kinds[0] not in entry.crc32]
            need += sum(int(np.prod(entry.shape(kind))) for entry in fresh for kind in kinds)
        free = shutil.disk_usage(self.out).free
        if need + _HEADROOM > free:
            raise UserError(
                f"the store needs {need / 1e9:.2f} GB and {self.out} has {max(free - _HEADROOM, 0) / 1e9:.2f} GB left; "
                "make room or choose another folder with --out"
            )

    def _decode_all(self, progress: Progress) -> None:
        """HR and LR of every image that is to do, several at once as far as memory allows."""
        rate, waiting = _Rate(), iter(self.todo)
        running: dict[Any, tuple[int, int]] = {}
        pixels, done = 0, 0
        upcoming = next(waiting, None)
        with one_torch_thread(), ThreadPoolExecutor(min(os.cpu_count() or 1, _THREADS)) as pool:
            try:
                while upcoming is not None or running:
                    while upcoming is not None and (not running or pixels < _PIXELS_AT_ONCE):
                        size = self.entries[upcoming].height * self.entries[upcoming].width
                        if running and pixels + size > _PIXELS_AT_ONCE:
                            break
                        running[pool.submit(self._decode, self.entries[upcoming])] = (upcoming, size)
                        pixels += size
                        upcoming = next(waiting, None)
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        i, size = running.pop(future)
                        self.entries[i] = future.result()
                        pixels -= size
                        done += 1
                        progress(done, len(self.todo), rate.add(size * 3))
            finally:
                pool.shutdown(cancel_futures=True)

    def _decode(self, entry: Entry) -> Entry:
        """Write HR and LR of one image; its entry, complete but for centroids."""
        notes = Notes()
        source = Path(entry.source)
        hr = read_image(source, notes, allow_16bit=self.allow_16bit)
        entry = replace(entry, height=hr.shape[0], width=hr.shape[1], crc32={})
        arrays = {hr_kind(): hr}
        for scale in self.scales:
            arrays[lr_kind(scale)] = self._lr(entry, hr, scale, notes)
        entry = replace(entry, notes=tuple(notes.kinds()))
        return self._keep(entry, arrays)

    def _lr(self, entry: Entry, hr: Image, scale: int, notes: Notes) -> Image:
        if entry.lr_source is None or scale != self.own_scale:
            return bicubic_lr(crop_to_multiple(hr, scale), scale)
        path = Path(entry.lr_source[0])
        lr = read_image(path, notes, allow_16bit=self.allow_16bit)
        if lr.shape != entry.shape(lr_kind(scale)):
            height, width, _ = entry.shape(lr_kind(scale))
            raise UserError(
                f"LR image {path} has {lr.shape[1]} x {lr.shape[0]} pixels instead of {width} x {height}; "
                "remake the LR images from these HR images, or leave the LR folder out"
            )
        return lr

    def _super_resolve_all(self, teacher: Teacher, progress: Progress) -> None:
        """The teacher's SR of every whole LR image that has none, one after the other, and its LR."""
        kind, lr_of_it = self._teacher_kinds()
        todo = [i for i, entry in enumerate(self.entries) if not {kind, lr_of_it} <= entry.crc32.keys()]
        rate = _Rate()
        for done, i in enumerate(todo, start=1):
            entry = self.entries[i]
            lr = np.load(self.out / lr_kind(teacher.scale) / f"{entry.key}.npy")
            sr = teacher.sr(lr)
            if sr.shape != entry.shape(kind):
                raise UserError(
                    f"the teacher makes {sr.shape[1]} x {sr.shape[0]} of {lr.shape[1]} x {lr.shape[0]} pixels, "
                    f"which is not x{teacher.scale}; name a teacher for x{teacher.scale}"
                )
            self.entries[i] = self._keep(entry, {kind: sr, lr_of_it: bicubic_lr(sr, teacher.scale)})
            progress(done, len(todo), rate.add(sr.nbytes))

    def _keep(self, entry: Entry, arrays: dict[str, Image]) -> Entry:
        """Write arrays, then a line of the journal."""
        for kind, array in arrays.items():
            _save(self.out / kind / f"{entry.key}.npy", array)
        sums = {kind: checksum(array) for kind, array in arrays.items()}
        entry = replace(entry, crc32={**entry.crc32, **sums})
        line = json.dumps(asdict(entry)) + "\n"
        with self.journal_lock, (self.out / _JOURNAL).open("a", encoding="utf-8") as file:
            file.write(line)
        return entry

    def _finish(self) -> None:
        """Write the index, then remove what no longer belongs to it."""
        records = [asdict(entry) | {"crc32": dict(sorted(entry.crc32.items()))} for entry in self.entries]
        index = {"format": FORMAT, "inputs": self.inputs, "scales": self.scales, "images": records}
        write_atomically(self.out / INDEX, (json.dumps(index, indent=1, sort_keys=True) + "\n").encode())
        (self.out / _JOURNAL).unlink(missing_ok=True)
        wanted = {self.out / kind / f"{entry.key}.npy" for entry in self.entries for kind in entry.crc32}
        for folder in self.out.iterdir():
            if folder.is_dir():
                for file in set(folder.iterdir()) - wanted:
                    file.unlink()
                if not any(folder.iterdir()):
                    folder.rmdir()


class _Rate:
    """MB/s since the start."""

    def __init__(self) -> None:
        self._started, self._bytes = time.monotonic(), 0

    def add(self, amount: int) -> float:
        self._bytes += amount
        return self._bytes / 1e6 / max(time.monotonic() - self._started, 1e-9)


def _save(path: Path, array: Image) -> None:
    """Write an array under a temporary name and rename it."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            np.lib.format.write_array(file, np.ascontiguousarray(array), version=(1, 0))
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}; make room and run eco-fast prepare again") from error


def _known_entries(out: Path) -> dict[str, Entry]:
    """What an index and a journal say is there; a line that a kill cut short is left out."""
    known: dict[str, Entry] = {}
    if (out / INDEX).is_file():
        try:
            known = {record["key"]: Entry.parse(record) for record in read_index(out)["images"]}
        except (UserError, KeyError, TypeError, ValueError, IndexError):
            known = {}  # damaged or of another format: everything is made anew
    if (out / _JOURNAL).is_file():
        for line in (out / _JOURNAL).read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = Entry.parse(json.loads(line))
            except (KeyError, TypeError, ValueError, IndexError):
                continue
            known[entry.key] = entry
    return known


def _scales_of(entries: Any) -> set[int]:
    return {int(kind.removeprefix("lr_x")) for entry in entries for kind in entry.crc32 if kind.startswith("lr_x")}


def _blank(file: Path, lr_file: Path | None) -> Entry:
    """An image of which nothing is made yet."""
    source = file.resolve()
    found = source.stat()
    digest = blake2b(str(source).encode(), digest_size=4).hexdigest()
    own = None
    if lr_file is not None:
        lr_found = lr_file.stat()
        own = (str(lr_file.resolve()), lr_found.st_size, lr_found.st_mtime_ns)
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", file.stem)[:80]
    return Entry(f"{stem}-{digest}", str(source), found.st_size, found.st_mtime_ns, 0, 0, (), own, {})


def _same_source(old: Entry, new: Entry) -> bool:
    return (old.source, old.size, old.mtime_ns, old.lr_source) == (new.source, new.size, new.mtime_ns, new.lr_source)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep other runs away from the store. The lock ends with the process, however that ends."""
    with (out / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another run is preparing {out}; wait for it, or choose another folder") from None
        yield
        (out / _LOCK).unlink(missing_ok=True)
