"""Making and updating a prepared store (see `store`).

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

from eco_fast.data.arrays import load_array, save_array
from eco_fast.data.decode import Decoder
from eco_fast.data.find import find_images, hr_folder, pair_files, unique
from eco_fast.data.header import image_size
from eco_fast.data.notes import Notes, Unusable
from eco_fast.data.pixels import Image, bicubic_lr, crop_to_multiple, one_torch_thread
from eco_fast.data.store import (
    FORMAT,
    INDEX,
    ArrayCheck,
    Entry,
    OwnLr,
    centroid_kind,
    centroid_lr_kind,
    checksum,
    hr_kind,
    lr_kind,
    read_index,
)
from eco_fast.errors import UserError
from eco_fast.files import write_atomically, writing

_JOURNAL, _LOCK = ".journal.jsonl", ".lock"
_FOLDERS = re.compile(r"hr|lr_x[234]|centroid(_lr)?_x[234]_[^_]+")  # those that a store has, and may clear
_THREADS = 16
_PIXELS_AT_ONCE = 48_000_000  # in all threads together: some 20 bytes each while an image is decoded and filtered
_ELSEWHERE = "choose another folder (prepare --out DIR, train --set data.store=DIR)"
_HEADROOM = 64 << 20  # bytes of disk that are left alone

OnItem = Callable[[int, int, float], None]  # images done, images in all, MB/s
Passes = Callable[[str], AbstractContextManager[OnItem]]  # name of a pass -> what is called after each image


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
    progress: Passes | None = None,
) -> None:
    """Make a store, finish one that was begun, or bring one up to date.

    Args:
        paths: Folders of HR images, or text files of paths (see `find_images`); an image named twice is taken once. Of
            a folder with `HR` and `LR*` inside, the usual layout of published sets, only `HR` is read.
        scales: LR scales; those that the store has already are kept.
        out: Folder of the store.
        lr_dir: The user's own LR images instead of the bicubic, for a single scale.
        teacher: Adds its SR of every whole LR image, and the LR of that.
        allow_16bit: Round images of 16 bits per channel to 8 instead of refusing them.
        progress: Name of a pass -> context that gives what is called after each of its images.

    Raises:
        UserError: Images are missing or unreadable, LR does not fit HR, the disk is too small, another run is at work.
    """
    if not paths:
        raise UserError("no training images are named; give at least one folder")
    files = unique(file for path in paths for file in find_images(hr_folder(Path(path))))
    if lr_dir is not None and len(scales) != 1:
        raise UserError("LR images of your own have one scale; name just that one with --scale")
    own: list[Path | None] = [None] * len(files) if lr_dir is None else pair_files(files, Path(lr_dir), scales[0])
    decoder = Decoder(allow_16bit=allow_16bit)
    report = progress or (lambda _: nullcontext(lambda done, total, rate: None))
    inputs = [Path(path).resolve() for path in paths]
    try:
        _refuse_folder(out, inputs)
        out.mkdir(parents=True, exist_ok=True)
        with _locked(out):
            _Work(out, inputs, files, own, scales, teacher, decoder, report).run()
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise UserError(
            f"cannot prepare {out}: {error.strerror or error}{where}; "
            "fix that and run the same command again, it goes on where it stopped"
        ) from error


class _Work:
    """One call of `prepare`."""

    def __init__(
        self,
        out: Path,
        inputs: list[Path],
        files: list[Path],
        own: list[Path | None],
        scales: Sequence[int],
        teacher: Teacher | None,
        decoder: Decoder,
        progress: Passes,
    ) -> None:
        self.out, self.inputs, self.teacher, self.decoder, self.progress = out, inputs, teacher, decoder, progress
        known = _known_entries(out)
        self.scales = sorted({*scales, *_scales_of(known.values())})
        self.entries = [_blank(file, lr_file, scales) for file, lr_file in zip(files, own, strict=True)]
        _refuse_to_lose_own_lr(out, known, self.entries)
        self.todo = self._adopt(known)
        self.journal_lock, self.unusable = threading.Lock(), Unusable()
        if (out / _JOURNAL).is_file():
            with (out / _JOURNAL).open("a") as journal:
                journal.write("\n")  # ends a line that a kill cut short

    def run(self) -> None:
        """Both passes, then the index."""
        self._check_room()
        for folder in {hr_kind(), *map(lr_kind, self.scales), *self._teacher_kinds()}:
            (self.out / folder).mkdir(exist_ok=True)
        with self.progress("images decoded") as report:
            self._decode_all(report)
        if self.teacher is not None:
            with self.progress("centroids made") as report:
                self._super_resolve_all(self.teacher, report)
        self._finish()

    def _teacher_kinds(self) -> list[str]:
        teacher = self.teacher
        if teacher is None:
            return []
        return [kind(teacher.scale, teacher.identity) for kind in (centroid_kind, centroid_lr_kind)]

    def _adopt(self, known: dict[str, Entry]) -> list[int]:
        """Take over the images of which all that was made is right; the numbers of those that lack something."""
        wanted = {hr_kind(), *map(lr_kind, self.scales)}
        check, rate = ArrayCheck(self.out), _Rate()

        def is_there(i: int) -> bool:
            old = known[self.entries[i].key]
            return hr_kind() in old.crc32 and all(check.fault(old, kind) is None for kind in old.crc32)

        same = [i for i, new in enumerate(self.entries) if new.key in known and _same_source(known[new.key], new)]
        if not same:
            return list(range(len(self.entries)))
        with self.progress("images checked") as report, ThreadPoolExecutor(min(os.cpu_count() or 1, _THREADS)) as pool:
            for done, (i, found) in enumerate(zip(same, pool.map(is_there, same), strict=True), start=1):
                if found:
                    self.entries[i] = known[self.entries[i].key]
                report(done, len(same), rate.add(self.entries[i].height * self.entries[i].width * 3))
        check.remember()
        return [i for i, entry in enumerate(self.entries) if not wanted <= entry.crc32.keys()]

    def _check_room(self) -> None:
        """Refuse to start what the disk cannot hold, or with images whose headers cannot be read."""
        need = 0
        for i in self.todo:
            entry = self.entries[i]
            if hr_kind() not in entry.crc32:
                height, width = 0, 0
                with self.unusable.collected(entry.source):
                    height, width = image_size(Path(entry.source))
                self.entries[i] = entry = replace(entry, height=height, width=width)
                need += height * width * 3
            need += sum((entry.height // s) * (entry.width // s) * 3 for s in self._missing_scales(entry))
        self.unusable.raise_if_any()
        if self.teacher is not None:
            kinds = self._teacher_kinds()
            fresh = [entry for entry in self.entries if kinds[0] not in entry.crc32]
            need += sum(int(np.prod(entry.shape(kind))) for entry in fresh for kind in kinds)
        free = shutil.disk_usage(self.out).free
        if need + _HEADROOM > free:
            raise UserError(
                f"the store needs {need / 1e9:.2f} GB and {self.out} has {max(free - _HEADROOM, 0) / 1e9:.2f} GB left; "
                f"make room or {_ELSEWHERE}"
            )

    def _decode_all(self, progress: OnItem) -> None:
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
        self.unusable.raise_if_any()

    def _decode(self, entry: Entry) -> Entry:
        """Write what is missing of HR and LR of one image; its entry, complete but for centroids.

        An image that cannot be read is kept for the end, where all of them are named.
        """
        if hr_kind() in entry.crc32:
            hr = load_array(self.out / hr_kind() / f"{entry.key}.npy")
            scales = self._missing_scales(entry)
            return self._keep(entry, {lr_kind(s): bicubic_lr(crop_to_multiple(hr, s), s) for s in scales})
        notes = Notes()
        source = Path(entry.source)
        decoded = None
        with self.unusable.collected(entry.source):
            decoded = self.decoder(source, notes)
        if decoded is None:
            return entry
        hr, decoder = decoded
        entry = replace(entry, height=hr.shape[0], width=hr.shape[1], decoder=decoder, crc32={})
        arrays = {hr_kind(): hr}
        for scale in self.scales:
            arrays[lr_kind(scale)] = self._lr(entry, hr, scale, notes)
        entry = replace(entry, notes=tuple(notes.kinds()))
        return self._keep(entry, arrays)

    def _missing_scales(self, entry: Entry) -> list[int]:
        return [scale for scale in self.scales if lr_kind(scale) not in entry.crc32]

    def _lr(self, entry: Entry, hr: Image, scale: int, notes: Notes) -> Image:
        if entry.own_lr is None or scale != entry.own_lr.scale:
            return bicubic_lr(crop_to_multiple(hr, scale), scale)
        path = Path(entry.own_lr.path)
        lr = self.decoder(path, notes).pixels
        if lr.shape != entry.shape(lr_kind(scale)):
            height, width, _ = entry.shape(lr_kind(scale))
            raise UserError(
                f"LR image {path} has {lr.shape[1]} x {lr.shape[0]} pixels instead of {width} x {height}; "
                "remake the LR images from these HR images, or leave the LR folder out"
            )
        return lr

    def _super_resolve_all(self, teacher: Teacher, progress: OnItem) -> None:
        """The teacher's SR of every whole LR image that has none, one after the other, and its LR."""
        kind, lr_of_it = self._teacher_kinds()
        todo = [i for i, entry in enumerate(self.entries) if not {kind, lr_of_it} <= entry.crc32.keys()]
        rate = _Rate()
        for done, i in enumerate(todo, start=1):
            entry = self.entries[i]
            lr = load_array(self.out / lr_kind(teacher.scale) / f"{entry.key}.npy")
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
            path = self.out / kind / f"{entry.key}.npy"
            with writing(path, "make room and run eco-fast prepare again"):
                save_array(path, array)
        sums = {kind: checksum(array) for kind, array in arrays.items()}
        entry = replace(entry, crc32={**entry.crc32, **sums})
        line = json.dumps(asdict(entry)) + "\n"
        with self.journal_lock, (self.out / _JOURNAL).open("a", encoding="utf-8") as file:
            file.write(line)
        return entry

    def _finish(self) -> None:
        """Write the index, then remove what no longer belongs to it."""
        records = [asdict(entry) | {"crc32": dict(sorted(entry.crc32.items()))} for entry in self.entries]
        inputs = [str(path) for path in self.inputs]
        index = {"format": FORMAT, "inputs": inputs, "scales": self.scales, "images": records}
        write_atomically(self.out / INDEX, (json.dumps(index, indent=1, sort_keys=True) + "\n").encode())
        (self.out / _JOURNAL).unlink(missing_ok=True)
        for half in self.out.glob(f".{INDEX}.*.tmp"):  # of a run that was killed right then
            half.unlink(missing_ok=True)
        wanted = {self.out / kind / f"{entry.key}.npy" for entry in self.entries for kind in entry.crc32}
        for folder in self.out.iterdir():
            if folder.is_dir() and _FOLDERS.fullmatch(folder.name):
                for file in {*folder.glob("*.npy"), *folder.glob(".*.npy.tmp")} - wanted:
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


def _known_entries(out: Path) -> dict[str, Entry]:
    """What an index and a journal say is there; a line that a kill cut short is left out."""
    known: dict[str, Entry] = {}
    if (out / INDEX).is_file():
        try:
            known = {record["key"]: Entry.parse(record) for record in read_index(out)["images"]}
        except (UserError, KeyError, TypeError, ValueError, AttributeError):
            known = {}  # damaged or of another format: everything is made again
    if (out / _JOURNAL).is_file():
        for line in (out / _JOURNAL).read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = Entry.parse(json.loads(line))
            except (KeyError, TypeError, ValueError, AttributeError):
                continue
            known[entry.key] = entry
    return known


def _scales_of(entries: Any) -> set[int]:
    return {int(kind.removeprefix("lr_x")) for entry in entries for kind in entry.crc32 if kind.startswith("lr_x")}


def _blank(file: Path, lr_file: Path | None, scales: Sequence[int]) -> Entry:
    """An image of which nothing is made yet."""
    source = file.resolve()
    found = source.stat()
    digest = blake2b(str(source).encode(), digest_size=4).hexdigest()
    own = None
    if lr_file is not None:
        lr_found = lr_file.stat()
        own = OwnLr(scales[0], str(lr_file.resolve()), lr_found.st_size, lr_found.st_mtime_ns)
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", file.stem)[:80]
    return Entry(f"{stem}-{digest}", str(source), found.st_size, found.st_mtime_ns, 0, 0, (), "", own, {})


def _same_source(old: Entry, new: Entry) -> bool:
    return (old.source, old.size, old.mtime_ns, old.own_lr) == (new.source, new.size, new.mtime_ns, new.own_lr)


def _refuse_to_lose_own_lr(out: Path, known: dict[str, Entry], entries: list[Entry]) -> None:
    """LR images of the user's own are replaced by others of theirs only, never by the bicubic."""
    had = {entry.own_lr.scale for entry in known.values() if entry.own_lr is not None}
    lost = had - {entry.own_lr.scale for entry in entries if entry.own_lr is not None}
    if lost:
        scale = min(lost)
        raise UserError(
            f"{out} holds LR images of your own at x{scale}; name them again with --scale {scale} --train-lr DIR, "
            f"or {_ELSEWHERE}"
        )


def _refuse_folder(out: Path, inputs: list[Path]) -> None:
    """A store is made in a folder of its own: nothing else is at risk when it is cleared up."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; {_ELSEWHERE}")
    for folder in inputs:
        if folder.is_dir() and out.resolve().is_relative_to(hr_folder(folder)):
            raise UserError(f"{out} lies in {folder}, whose images are prepared; {_ELSEWHERE}, outside")
    begun = any((out / name).exists() for name in (INDEX, _JOURNAL, _LOCK))
    if out.is_dir() and not begun and not all(map(_may_be_ours, out.iterdir())):
        raise UserError(f"{out} is not empty and no prepared store; {_ELSEWHERE}, new or empty")


def _may_be_ours(path: Path) -> bool:
    """Whether something may lie in a folder that becomes a store: hidden, or arrays of one that lost its index."""
    if path.name.startswith("."):
        return True
    ours = path.is_dir() and _FOLDERS.fullmatch(path.name) is not None
    return ours and all(file.name.endswith((".npy", ".npy.tmp")) for file in path.iterdir())


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep other runs away from the store. The lock ends with the process, however that ends."""
    lock = out / _LOCK
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A run that just ended may have removed the file that was opened: a lock on it keeps no other run away.
            held = os.path.samestat(os.fstat(file.fileno()), lock.stat())
        except (BlockingIOError, FileNotFoundError):
            held = False
        if not held:
            raise UserError(f"another run is preparing {out}; wait for it, or {_ELSEWHERE}")
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
