"""Making, finishing, updating and checking a prepared store."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eco_fast.data import make_store as prepare_module
from eco_fast.data.decode import Decoded, Decoder
from eco_fast.data.make_store import Teacher, prepare
from eco_fast.data.notes import Notes
from eco_fast.data.pixels import bicubic_lr
from eco_fast.data.store import PreparedStore, is_store
from eco_fast.errors import UserError
from tests.conftest import make_image


def twice(scale: int = 2, identity: str = "abcd1234") -> Teacher:
    """A teacher that repeats pixels, and can be told from the real image."""
    return Teacher(scale, identity, lambda lr: (255 - lr).repeat(scale, 0).repeat(scale, 1))


def reading(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images that are decoded from here on."""
    read: list[str] = []
    original = Decoder.__call__

    def recording(decoder: Decoder, path: Path, notes: Notes) -> Decoded:
        read.append(path.name)
        return original(decoder, path, notes)

    monkeypatch.setattr(Decoder, "__call__", recording)
    return read


def content(store: Path) -> dict[str, bytes]:
    """Every file of a finished store, but for the memory of what was checked."""
    files = (path for path in store.rglob("*") if path.is_file() and path.name != ".checked.json")
    return {str(path.relative_to(store)): path.read_bytes() for path in files}


@pytest.fixture
def store(photos: Path, tmp_path: Path) -> Path:
    prepare([photos], [2, 3], tmp_path / "store", teacher=twice())
    return tmp_path / "store"


def test_what_is_stored(photos: Path, store: Path) -> None:
    opened = PreparedStore.open(store)
    assert opened.kinds == {"hr", "lr_x2", "lr_x3", "centroid_x2_abcd1234", "centroid_lr_x2_abcd1234"}
    assert opened.teachers(2) == ["abcd1234"]
    assert opened.teachers(3) == []
    assert {entry.decoder.split()[0] for entry in opened.entries} <= {"DALI", "Pillow"}
    for entry, source in zip(opened.entries, sorted(photos.iterdir()), strict=True):
        hr = np.array(Image.open(source))
        assert entry.source == str(source)
        arrays = {kind: np.load(opened.file(kind, entry)) for kind in opened.kinds}
        height, width = hr.shape[0] // 3 * 3, hr.shape[1] // 3 * 3
        lr = bicubic_lr(hr, 2)
        centroid = (255 - lr).repeat(2, 0).repeat(2, 1)
        expected = {"hr": hr, "lr_x2": lr, "lr_x3": bicubic_lr(hr[:height, :width], 3)}
        expected |= {"centroid_x2_abcd1234": centroid, "centroid_lr_x2_abcd1234": bicubic_lr(centroid, 2)}
        assert all(np.array_equal(arrays[kind], expected[kind]) for kind in arrays)


def test_training_set(photos: Path, tmp_path: Path) -> None:
    Image.fromarray(make_image(31, 80, 9)).save(photos / "small.png")
    Image.fromarray(make_image(65, 63, 9)[..., 0]).save(photos / "odd.png")
    prepare([photos], [2], tmp_path / "store", teacher=twice())
    opened, notes = PreparedStore.open(tmp_path / "store"), Notes()
    entries = opened.holding(2, 16, notes)
    images = opened.training_set(2, entries, teacher="abcd1234")
    assert [Path(entry.source).name for entry in entries] == [
        "image0.png",
        "image1.png",
        "image2.png",
        "image3.png",
        "odd.png",
    ]
    assert images.hr.image(4).shape == (65, 63, 3)
    assert images.lr.image(4).shape == (32, 31, 3)
    assert images.centroid is not None and images.centroid_lr is not None
    assert images.centroid.image(4).shape == (64, 62, 3)
    assert opened.notes.lines() == ["1 greyscale image converted to RGB: odd.png"]
    assert notes.lines() == [
        "1 image cropped to a multiple of 2: odd.png",
        "1 image left out, smaller than a patch (32 x 32): small.png",
    ]


@pytest.mark.parametrize("rows", [1, 7, 128])
def test_lr_in_bands_is_the_lr_of_the_whole_image(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image = make_image(96, 60, 3)
    whole = {scale: bicubic_lr(image, scale) for scale in (2, 3, 4)}
    monkeypatch.setattr("eco_fast.data.pixels._BAND", rows)
    assert all(np.array_equal(bicubic_lr(image, scale), lr) for scale, lr in whole.items())


_KILLS = """
import json, os, random, signal, sys, time
from pathlib import Path
from eco_fast.data.decode import Decoder
from eco_fast.data.make_store import Teacher, prepare

Decoder()  # imports what it needs, which would take most of the time otherwise
photos, root, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
teacher = Teacher(2, "abcd1234", lambda lr: (255 - lr).repeat(2, 0).repeat(2, 1))
replace = Path.replace
def slow(self, target):
    time.sleep(0.004)  # room for a kill between writing and renaming, and after it
    result = replace(self, target)
    time.sleep(0.004)
    return result

def start(out):
    process = os.fork()
    if process == 0:
        Path.replace = slow
        prepare([photos], [2, 3], out, teacher=teacher)
        os._exit(0)
    return process

started = time.monotonic()
os.waitpid(start(root / "timed"), 0)
whole = time.monotonic() - started
found = []
for number in range(count):
    out = root / f"killed{number}"
    delay = (number + random.random()) / count * whole  # a random moment of each tenth
    process = start(out)
    time.sleep(delay)
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    files = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    found.append((delay / whole, os.WIFSIGNALED(status), files))
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_and_a_rerun_give_the_same_bytes(photos: Path, store: Path, tmp_path: Path) -> None:
    """Every run is killed at work, with another part of the store there; half of them are killed twice."""
    expected, kills = content(store), 10
    command = [sys.executable, "-c", _KILLS, str(photos), str(tmp_path), str(kills)]
    stages = set()
    for _ in range(2):
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        moments = json.loads(result.stdout)
        # Not all hit: a run may be quicker than the one that was timed.
        assert sum(was_killed for _, was_killed, _ in moments) >= kills // 2, moments
        stages |= {len(files) for _, was_killed, files in moments if was_killed}
        for number in range(0, kills, 2):  # every other store is finished, the rest is killed again
            if (tmp_path / f"killed{number}").exists():
                prepare([photos], [2, 3], tmp_path / f"killed{number}", teacher=twice())
                assert content(tmp_path / f"killed{number}") == expected, moments[number]
                shutil.rmtree(tmp_path / f"killed{number}")
        shutil.rmtree(tmp_path / "timed")
    assert len(stages) > 4, stages
    for number in range(1, kills, 2):
        prepare([photos], [2, 3], tmp_path / f"killed{number}", teacher=twice())
        assert content(tmp_path / f"killed{number}") == expected, moments[number]
        PreparedStore.open(tmp_path / f"killed{number}", recheck=True)


@pytest.mark.parametrize("journal", [None, '{"key": "image0-12'])
def test_a_killed_run_is_not_begun_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journal: str | None
) -> None:
    """Not even where an earlier kill cut the journal's last line short: the next one must not be glued to it."""
    if journal is not None:
        (tmp_path / "store").mkdir()
        (tmp_path / "store" / ".journal.jsonl").write_text(journal)
    calls: list[str] = []
    original = Decoder.__call__

    def stopping(decoder: Decoder, path: Path, notes: Notes) -> Decoded:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(path.name)
        return original(decoder, path, notes)

    monkeypatch.setattr(prepare_module, "_THREADS", 1)
    monkeypatch.setattr(Decoder, "__call__", stopping)
    with pytest.raises(KeyboardInterrupt):
        prepare([photos], [2], tmp_path / "store")
    assert not is_store(tmp_path / "store")
    monkeypatch.setattr(Decoder, "__call__", original)
    more = reading(monkeypatch)
    prepare([photos], [2], tmp_path / "store")
    calls += more
    assert sorted(calls) == ["image0.png", "image1.png", "image2.png", "image3.png"]


def test_only_what_changed_is_made_again(photos: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image changed, one removed, one new; and what results is what one go would have made."""
    read = reading(monkeypatch)
    asked: list[int] = []
    teacher = twice()._replace(sr=lambda lr: (asked.append(1), twice().sr(lr))[1])
    prepare([photos], [2], store, teacher=teacher)
    assert (read, asked) == ([], [])
    Image.fromarray(make_image(64, 80, 77)).save(photos / "image0.png")
    (photos / "image1.png").unlink()
    Image.fromarray(make_image(70, 70, 78)).save(photos / "new.png")
    prepare([photos], [2], store, teacher=teacher)
    assert (sorted(read), len(asked)) == (["image0.png", "new.png"], 2)
    fresh = store.with_name("fresh")
    prepare([photos], [2, 3], fresh, teacher=twice())
    assert content(store) == content(fresh)


def test_a_scale_and_a_teacher_more(photos: Path, store: Path, tmp_path: Path) -> None:
    """Nothing that was there is made again; what is added is as if it had been made at once."""
    before = {file: file.stat().st_mtime_ns for file in store.rglob("*.npy")}
    kinds = PreparedStore.open(store).kinds
    prepare([photos], [4], store, teacher=twice(4, "ffff0000"))
    opened = PreparedStore.open(store)
    assert kinds | {"lr_x4", "centroid_x4_ffff0000"} <= opened.kinds
    assert opened.teachers(4) == ["ffff0000"]
    assert {file: file.stat().st_mtime_ns for file in before} == before
    prepare([photos], [2, 3, 4], tmp_path / "at once")
    for file in (tmp_path / "at once").rglob("*.npy"):
        assert file.read_bytes() == (store / file.relative_to(tmp_path / "at once")).read_bytes()


def test_a_damaged_image_is_made_again_with_all_its_scales(photos: Path, store: Path) -> None:
    path = next(store.glob("hr/image2*"))
    path.write_bytes(path.read_bytes()[:-9] + b"123456789")
    prepare([photos], [4], store)
    opened = PreparedStore.open(store, recheck=True)
    assert {"lr_x2", "lr_x3", "lr_x4"} <= opened.kinds


def damage(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path, Path], None]:
    def act(photos: Path, store: Path) -> None:
        path = next(store.glob(name))
        path.write_bytes(change(path.read_bytes()))

    return act


FAULTS: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "truncated array": (damage("lr_x2/image1*", lambda b: b[:-5]), "lr_x2/image1.*damaged"),
    "one bit": (damage("hr/image2*", lambda b: b[:-9] + bytes([b[-9] ^ 1]) + b[-8:]), "hr/image2.*damaged"),
    "no array": (lambda photos, store: next(store.glob("centroid_lr*/image3*")).unlink(), "image3.*missing"),
    "no npy at all": (damage("hr/image0*", lambda b: b"nonsense"), "hr/image0.*damaged"),
    "older format": (damage("index.json", lambda b: b.replace(b'"format": 2', b'"format": 1')), "format 1"),
    "damaged index": (damage("index.json", lambda b: b[: len(b) // 2]), "index.json is damaged"),
    "index without a key": (damage("index.json", lambda b: b.replace(b'"width"', b'"breadth"')), "is damaged"),
    "newer source": (lambda photos, store: os.utime(photos / "image1.png"), "1 source images are changed.*image1"),
    "altered source": (lambda photos, store: (photos / "image1.png").write_bytes(b"other"), "changed.*image1"),
    "source gone": (lambda photos, store: (photos / "image2.png").unlink(), "1 source images are gone.*image2"),
    "source more": (
        lambda photos, store: shutil.copy(photos / "image1.png", photos / "more.png"),
        "1 source images are new.*more",
    ),
    "no store": (lambda photos, store: (store / "index.json").unlink(), "is no prepared store"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_and_nothing_wrong_is_read(photos: Path, store: Path, fault: str) -> None:
    """Even when everything was found right a moment before; and preparing again repairs it."""
    PreparedStore.open(store)
    act, words = FAULTS[fault]
    act(photos, store)
    with pytest.raises(UserError, match=words):
        PreparedStore.open(store)
    if fault == "altered source":
        Image.fromarray(make_image(64, 64, 5)).save(photos / "image1.png")
    prepare([photos], [2, 3], store, teacher=twice())
    PreparedStore.open(store, recheck=True)


def test_what_a_recheck_finds_damaged_is_made_again(photos: Path, store: Path) -> None:
    """Though size and time are those of the file that was found right before."""
    expected = content(store)
    PreparedStore.open(store)
    path = next(store.glob("hr/image0*"))
    before = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(UserError, match="prepare again"):
        PreparedStore.open(store, recheck=True)
    prepare([photos], [2, 3], store, teacher=twice())
    assert content(store) == expected


def test_arrays_that_were_found_right_are_not_read_again(
    photos: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PreparedStore.open(store)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("read"))
    prepare([photos], [2, 3], store, teacher=twice())
    PreparedStore.open(store)


@pytest.mark.parametrize("key", ["inputs", "images"])
@pytest.mark.parametrize("content", [None, [], 7, [7]])
def test_an_index_without_its_parts_is_damaged(store: Path, key: str, content: object) -> None:
    index = json.loads((store / "index.json").read_text())
    del index[key]
    if content is not None:
        index[key] = content
    (store / "index.json").write_text(json.dumps(index))
    words = "out of date" if (key, content) == ("inputs", []) else r"index.json is damaged"
    with pytest.raises(UserError, match=words):
        PreparedStore.open(store)


def test_damage_behind_an_old_time_is_found_by_a_recheck(store: Path) -> None:
    PreparedStore.open(store)
    path = next(store.glob("hr/image0*"))
    before = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    PreparedStore.open(store)
    with pytest.raises(UserError, match="image0"):
        PreparedStore.open(store, recheck=True)


def test_a_moved_store_without_its_images(photos: Path, store: Path) -> None:
    shutil.rmtree(photos)
    opened = PreparedStore.open(store)
    assert len(opened.entries) == 4
    assert "input folders are gone" in opened.notes.lines()[0]


def test_a_list_of_paths_that_is_gone(photos: Path, tmp_path: Path) -> None:
    listing = tmp_path / "list.txt"
    listing.write_text("\n".join(map(str, sorted(photos.iterdir()))))
    prepare([listing], [2], tmp_path / "store")
    listing.unlink()
    assert "input folders are gone" in PreparedStore.open(tmp_path / "store").notes.lines()[0]


def test_files_that_are_not_of_the_store_are_never_removed(photos: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "documents").mkdir(parents=True)
    (home / "documents" / "thesis.txt").write_text("years of work")
    (home / "hr").mkdir()
    (home / "hr" / "staff.csv").write_text("names")
    before = content(home)
    with pytest.raises(UserError, match="home is not empty and no prepared store"):
        prepare([photos], [2], home)
    assert content(home) == before
    prepare([photos], [2], tmp_path / "store")
    for name in ("notes/mine.npy", "hr/mine.txt", "mine.npy"):  # put there later
        (tmp_path / "store" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "store" / name).write_text("mine")
    next((tmp_path / "store" / "hr").glob("image0*.npy")).rename(tmp_path / "store" / "hr" / "old-00000000.npy")
    prepare([photos], [2], tmp_path / "store")
    assert {"notes/mine.npy", "hr/mine.txt", "mine.npy"} <= content(tmp_path / "store").keys()
    assert not (tmp_path / "store" / "hr" / "old-00000000.npy").exists()


def test_folders_that_cannot_become_a_store(photos: Path, tmp_path: Path) -> None:
    for out in (photos, photos / "store"):
        with pytest.raises(UserError, match="whose images are prepared; choose another folder"):
            prepare([photos], [2], out)
    with pytest.raises(UserError, match=r"image0\.png is a file"):
        prepare([photos], [2], photos / "image0.png")
    assert len(list(photos.iterdir())) == 4
    assert list(tmp_path.iterdir()) == [photos]


def test_half_an_index_of_a_killed_run_is_removed(photos: Path, store: Path) -> None:
    expected = content(store)
    (store / ".index.json.123.tmp").write_bytes(b"{")
    (store / "hr" / ".image0-00000000.npy.tmp").write_bytes(b"half")
    prepare([photos], [2, 3], store, teacher=twice())
    assert content(store) == expected


def test_a_failed_run_leaves_a_folder_that_the_next_one_takes(photos: Path, tmp_path: Path) -> None:
    good = (photos / "image0.png").read_bytes()
    for image in photos.iterdir():
        image.write_bytes(good[:200])
    with pytest.raises(UserError, match="cannot read image"):
        prepare([photos], [2], tmp_path / "store")
    for image in photos.iterdir():
        image.write_bytes(good)
    prepare([photos], [2], tmp_path / "store")
    PreparedStore.open(tmp_path / "store")


def test_corrupt_images_are_named(photos: Path, tmp_path: Path) -> None:
    (photos / "image1.png").write_bytes((photos / "image1.png").read_bytes()[:200])
    with pytest.raises(UserError, match=r"cannot read image .*image1.png"):
        prepare([photos], [2], tmp_path / "store")
    with pytest.raises(UserError, match="is no prepared store"):
        PreparedStore.open(tmp_path / "store")


def test_too_small_a_disk_is_found_before_the_start(photos: Path, tmp_path: Path, monkeypatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=(64 << 20) + 10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="make room"):
        prepare([photos], [2], tmp_path / "store")
    assert not list((tmp_path / "store").glob("*/*.npy"))


@pytest.mark.slow
def test_a_full_disk_is_named_and_what_was_written_stays(photos: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""
    Image.fromarray(make_image(300, 300, 1)).save(photos / "zlarge.png")
    code = (
        "import resource, signal, sys; from pathlib import Path; from eco_fast.data.make_store import prepare\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "from eco_fast.errors import UserError\n"
        "try: prepare([Path(sys.argv[1])], [2], Path(sys.argv[2]))\n"
        "except UserError as error: sys.exit(str(error))\n"
    )
    command = [sys.executable, "-c", code, str(photos), str(tmp_path / "store")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert "cannot write" in result.stderr and "zlarge" in result.stderr and "make room" in result.stderr
    assert not list((tmp_path / "store").rglob("*.tmp"))
    prepare([photos], [2], tmp_path / "store")
    PreparedStore.open(tmp_path / "store")


def test_a_disk_that_is_full_at_the_index_is_named(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "write_atomically", full)
        with pytest.raises(UserError, match=r"cannot prepare .*No space left on device.*the same command again"):
            prepare([photos], [2], tmp_path / "store")
    assert not is_store(tmp_path / "store")
    read = reading(monkeypatch)
    prepare([photos], [2], tmp_path / "store")
    assert read == []  # it goes on where it stopped
    PreparedStore.open(tmp_path / "store")


def test_a_lock_that_its_owner_removed_keeps_no_other_away(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is opened before the owner ends, and locked after: a third run would lock a new file at the same time."""
    flock = prepare_module.fcntl.flock

    def late(file: Any, how: int) -> None:
        (tmp_path / "store" / ".lock").unlink()
        flock(file, how)

    monkeypatch.setattr(prepare_module.fcntl, "flock", late)
    with pytest.raises(UserError, match="another run is preparing"):
        prepare([photos], [2], tmp_path / "store")


def test_two_runs_at_once(photos: Path, tmp_path: Path) -> None:
    def second(lr: np.ndarray) -> np.ndarray:
        with pytest.raises(UserError, match="another run is preparing"):
            prepare([photos], [2], tmp_path / "store")
        return twice().sr(lr)

    prepare([photos], [2], tmp_path / "store", teacher=twice()._replace(sr=second))


def test_own_lr(photos: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for path in photos.iterdir():
        lr = bicubic_lr(np.array(Image.open(path)), 2)
        Image.fromarray(255 - lr).save(own / f"{path.stem}x2.png")
    prepare([photos], [2], tmp_path / "store", lr_dir=own)
    opened = PreparedStore.open(tmp_path / "store")
    first = np.load(opened.file("lr_x2", opened.entries[0]))
    assert np.array_equal(first, np.array(Image.open(own / "image0x2.png")))
    before = content(tmp_path / "store")
    for scales in ([2], [3]):  # the bicubic must not take the place of the user's own
        with pytest.raises(UserError, match="holds LR images of your own at x2"):
            prepare([photos], scales, tmp_path / "store")
    assert content(tmp_path / "store") == before
    os.utime(own / "image0x2.png")
    with pytest.raises(UserError, match=r"changed.*image0"):
        PreparedStore.open(tmp_path / "store")
    (own / "image0x2.png").unlink()
    with pytest.raises(UserError, match=r"changed.*image0"):
        PreparedStore.open(tmp_path / "store")
    Image.new("RGB", (20, 20)).save(own / "image0x2.png")
    with pytest.raises(UserError, match=r"image0x2.png has 20 x 20 pixels instead of 40 x 32"):
        prepare([photos], [2], tmp_path / "store", lr_dir=own)
    with pytest.raises(UserError, match="--scale"):
        prepare([photos], [2, 3], tmp_path / "store", lr_dir=own)


def test_teacher_of_another_scale(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which is not x2"):
        prepare([photos], [2], tmp_path / "store", teacher=twice()._replace(sr=lambda lr: lr))


def test_exif_grey_alpha_and_same_names(photos: Path, tmp_path: Path) -> None:
    (photos / "deep").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    picture = make_image(60, 80, 1)
    Image.fromarray(picture).save(photos / "deep" / "image0.jpg", exif=exif, quality=100)
    Image.fromarray(picture).save(photos / "deep" / "image0.webp", lossless=True)
    Image.new("RGBA", (64, 64), (10, 20, 30, 128)).save(photos / "deep" / "alpha.png")
    prepare([photos], [2], tmp_path / "store")
    opened = PreparedStore.open(tmp_path / "store")
    by_name = {Path(e.source).name: e for e in opened.entries if "deep" in e.source}
    assert (by_name["image0.jpg"].height, by_name["image0.jpg"].width) == (80, 60)
    assert np.array_equal(np.load(opened.file("hr", by_name["image0.webp"])), picture)
    assert len({entry.key for entry in opened.entries}) == 7
    assert opened.notes.lines() == ["1 image with an alpha channel that was dropped: alpha.png"]


def test_the_index_is_readable(store: Path) -> None:
    index = json.loads((store / "index.json").read_text())
    assert index["scales"] == [2, 3]
    assert len(index["images"]) == 4
