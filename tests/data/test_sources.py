"""All sources give the same batches for the same plan, from any step on, and read what the step needs and no more."""

import struct
import sys
import threading
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from eco_fast.data.files import Files, ImageFiles, visits
from eco_fast.data.flat import FlatImages, TrainingSet
from eco_fast.data.mapped import ArrayFiles, Mapped
from eco_fast.data.memory import free_memory, resident_bytes
from eco_fast.data.pixels import bicubic_lr, crop_to_multiple
from eco_fast.data.sampler import Plan, PlanOf, Sampler
from eco_fast.data.source import KINDS, ReadsOf, Resident, SideBySide, Source
from eco_fast.eco.objective import Blend
from eco_fast.errors import UserError
from eco_fast.train.batches import make_batch
from tests.sets import blended

PATCH, BATCH, COPIES, STEPS = 8, 8, 3, 200
EXTENSIONS = ("png", "jpg", "webp", "bmp", "tif")


def deep_png(height: int, width: int) -> bytes:
    """An RGB PNG of 16 bits per channel, which Pillow cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    rows = zlib.compress(bytes(height * (1 + 6 * width)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


DEEP_PNG = deep_png(61, 83)

dali = pytest.mark.usefixtures("dali")


class Case:
    """Images of odd sizes in every form that a source reads: originals, arrays of a store, resident."""

    def __init__(self, folder: Path, scale: int, sizes: list[tuple[int, int]] | None = None) -> None:
        rng = np.random.default_rng(scale)
        side = PATCH * scale
        # Two images exactly one patch large (one of them after the crop), one a single LR pixel wider, odd sizes.
        sizes = sizes or [
            (side, side),
            (side + scale - 1, side + 1),
            (side, side + scale),
            (61, 83),
            (97, 50),
            (70, 131),
        ]
        self.scale, self.folder = scale, folder
        self.originals, hr = [], []
        for i, (height, width) in enumerate(sizes):
            coarse = Image.fromarray(rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8))
            noisy = np.asarray(coarse.resize((width, height))) ^ rng.integers(0, 32, (height, width, 3), dtype=np.uint8)
            self.originals.append(str(folder / f"{i}.{EXTENSIONS[i % len(EXTENSIONS)]}"))
            Image.fromarray(noisy).save(self.originals[-1])
            hr.append(np.array(Image.open(self.originals[-1]).convert("RGB")))
        lr = [bicubic_lr(crop_to_multiple(image, scale), scale) for image in hr]
        centroid = [np.roll(crop_to_multiple(image, scale), 3, 0)[:, ::-1].copy() for image in hr]
        self.arrays = {
            "hr": hr,
            "lr": lr,
            "centroid": centroid,
            "centroid_lr": [bicubic_lr(c, scale) for c in centroid],
        }
        for kind, images in self.arrays.items():
            (folder / kind).mkdir()
            for i, image in enumerate(images):
                np.save(folder / kind / f"{i}.npy", image)
        paths = {kind: [str(folder / kind / f"{i}.npy") for i in range(len(sizes))] for kind in self.arrays}
        self.hr_heights, self.hr_widths = torch.tensor(sizes).T
        self.heights, self.widths = self.hr_heights // scale, self.hr_widths // scale
        self.stored = ArrayFiles(scale, self.heights, self.widths, **paths)
        self.files = ImageFiles(scale, self.hr_heights, self.hr_widths, self.originals)
        self.own_lr = self.files._replace(lr=self.save_lr(folder / "own"))
        flat = {kind: FlatImages.from_arrays(list(images)) for kind, images in self.arrays.items()}
        self.resident = TrainingSet(scale=scale, **flat)

    def save_lr(self, folder: Path) -> list[str]:
        folder.mkdir()
        for i, image in enumerate(self.arrays["lr"]):
            Image.fromarray(image).save(folder / f"{i}.png")
        return [str(folder / f"{i}.png") for i in range(len(self.arrays["lr"]))]

    def sampler(self, rank: int = 0, world_size: int = 1) -> Sampler:
        return Sampler(self.heights, self.widths, self.scale, PATCH, BATCH, 5, COPIES, rank, world_size)

    def open(self, name: str, plan: PlanOf, reads: ReadsOf, steps: int = STEPS, context: int = 0) -> Source:
        if name == "resident":
            return Resident(self.resident, lambda step: plan(step).row, reads, PATCH, context)
        if name == "mapped":
            return Mapped(self.stored, plan, reads, steps, PATCH, context, threads=2)
        files = self.own_lr if name == "files, own LR" else self.files
        return Files(files, plan, reads, steps, PATCH, COPIES, context, threads=2)


@pytest.fixture(scope="module", params=[2, 3, 4])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp(f"x{request.param}"), request.param)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Only images with room for windows."""
    return Case(tmp_path_factory.mktemp("large"), 2, sizes=[(36, 37), (61, 83), (97, 50), (70, 131), (40, 200)])


@pytest.fixture(scope="module")
def x4(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("case"), 4)


Weighted = tuple[Blend, tuple[str, ...]]


def reads_of(weights: Callable[[int], Weighted]) -> ReadsOf:
    return lambda step: weights(step)[1]


def eco(step: int) -> Weighted:
    """Phases of 50, 100 and 50 steps: centroid alone, both, real alone."""
    return blended("eco", min(max((step - 49) / 100, 0.0), 1.0), torch.zeros(1))


def vanilla(step: int) -> Weighted:
    return blended("vanilla", 1.0, torch.zeros(1))


REAL = reads_of(vanilla)


def upright(plan: PlanOf) -> PlanOf:
    def without(step: int) -> Plan:
        original = plan(step)
        return original._replace(orientation=torch.zeros_like(original.orientation))

    return without


def parts(batch: tuple[Tensor | None, ...]) -> list[Tensor]:
    return [part for part in batch if part is not None]


def assert_equal_batches(source: Source, truth: Source, weights: Callable[[int], Weighted], steps: range) -> None:
    for step in steps:
        ours, theirs = (parts(make_batch(s.fetch(step).patches(), *weights(step))) for s in (source, truth))
        assert len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)), step


@dali
@pytest.mark.parametrize("turn", [True, False])
@pytest.mark.parametrize(
    ("name", "weights"), [("mapped", eco), ("mapped", vanilla), ("files", vanilla), ("files, own LR", vanilla)]
)
def test_sources_agree_to_the_bit(case: Case, name: str, weights: Callable[[int], Weighted], turn: bool) -> None:
    plan = case.sampler().plan if turn else upright(case.sampler().plan)
    source, truth = (case.open(n, plan, reads_of(weights)) for n in (name, "resident"))
    assert_equal_batches(source, truth, weights, range(STEPS))
    source.close()


@dali
@pytest.mark.parametrize("name", ["mapped", "files", "files, own LR"])
def test_patches_are_crops_of_the_whole_images(case: Case, name: str) -> None:
    """Not only like another source, but like NumPy's slices of what was saved."""
    plan = case.sampler().plan
    kinds = tuple(case.arrays) if name == "mapped" else ("hr", "lr")
    source = case.open(name, plan, lambda step: kinds)
    for step in range(20):
        patches, original = source.fetch(step).patches(), plan(step)
        for kind in kinds:
            factor = 1 if kind.endswith("lr") else case.scale
            for k, (i, top, left) in enumerate(zip(*(c.tolist() for c in original[:3]), strict=True)):
                side, y, x = PATCH * factor, top * factor, left * factor
                expected = case.arrays[kind][i][y : y + side, x : x + side]
                np.testing.assert_array_equal(patches.images[kind].image(k), expected)
    source.close()


@dali
@pytest.mark.parametrize("name", ["resident", "mapped", "files", "files, own LR"])
@pytest.mark.parametrize("context", [2, 5])
def test_windows_are_crops_of_the_whole_images(name: str, context: int, large: Case) -> None:
    """At the sides of an image they slide inside; patches of the same steps are where they were."""
    sampler = Sampler(large.heights, large.widths, large.scale, PATCH, BATCH, 5, COPIES, context=context)
    source = large.open(name, sampler.plan, lambda step: ("window", "hr"), context=context)
    side, slid = PATCH + 2 * context, 0
    for step in range(20):
        patches, original = source.fetch(step).patches(), sampler.plan(step)
        assert patches.window is not None and patches.window.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(patches.plan.inner_top, original.inner_top)
        for k in range(BATCH):
            image, y, x = (int(c[k]) for c in original[:3])
            height, width = large.arrays["lr"][image].shape[:2]
            top, left = (min(max(at - context, 0), length - side) for at, length in ((y, height), (x, width)))
            slid += (top, left) != (y - context, x - context)
            assert (int(original.inner_top[k]), int(original.inner_left[k])) == (y - top, x - left)
            expected = large.arrays["lr"][image][top : top + side, left : left + side]
            np.testing.assert_array_equal(patches.window[k].permute(1, 2, 0).numpy(), expected)
    assert slid > 20
    source.close()


@dali
@pytest.mark.parametrize("name", ["mapped", "files"])
def test_any_step_can_be_fetched_next(x4: Case, name: str) -> None:
    """Resuming in a fresh source, seeking both ways in a used one, and the last step of all."""
    plan = x4.sampler().plan
    truth = x4.open("resident", plan, REAL)
    used = x4.open(name, plan, REAL)
    for step in (0, 1, 63, 64, 17, 131, 132, 130, STEPS - 1):
        fresh = x4.open(name, plan, REAL)
        assert_equal_batches(fresh, truth, vanilla, range(step, min(step + 3, STEPS)))
        assert_equal_batches(used, truth, vanilla, range(step, min(step + 2, STEPS)))
        fresh.close()
    with pytest.raises(ValueError, match="step 200"):
        used.fetch(STEPS)
    used.close()


@dali
def test_batches_outlive_the_steps_after_them(x4: Case) -> None:
    """Their memory must not be used again while they are held."""
    plan = x4.sampler().plan
    for name in ("mapped", "files"):
        source, truth = (x4.open(n, plan, REAL) for n in (name, "resident"))
        held = [source.fetch(step).patches() for step in range(60)]
        source.close()
        for step, patches in enumerate(held):
            assert torch.equal(patches.target("hr"), truth.fetch(step).patches().target("hr"))


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("name", ["resident", "mapped", "files"])
def test_ranks_share_the_global_batch(x4: Case, name: str, world_size: int, request: pytest.FixtureRequest) -> None:
    if name == "files":
        request.getfixturevalue("dali")
    truth = x4.open("resident", x4.sampler().plan, REAL)
    ranks = [x4.open(name, x4.sampler(rank, world_size).plan, REAL) for rank in range(world_size)]
    for step in [*range(12), 90, 91]:
        whole = parts(make_batch(truth.fetch(step).patches(), *vanilla(step))[:3])
        shares = [parts(make_batch(rank.fetch(step).patches(), *vanilla(step))[:3]) for rank in ranks]
        assert all(
            torch.equal(torch.cat(pieces), w) for pieces, w in zip(zip(*shares, strict=True), whole, strict=True)
        )
    for rank in ranks:
        rank.close()


def test_what_is_not_needed_is_not_read(x4: Case, tmp_path: Path) -> None:
    missing = [str(tmp_path / "missing.npy")] * len(x4.originals)
    plan, reads = x4.sampler().plan, reads_of(eco)
    without = {"hr": range(40), "lr": range(40), "centroid": range(150, 190), "centroid_lr": range(150, 190)}
    for kind, steps in without.items():
        source = Mapped(x4.stored._replace(**{kind: missing}), plan, reads, STEPS, PATCH, threads=1)
        truth = x4.open("resident", plan, reads)
        assert_equal_batches(source, truth, eco, steps)
        with pytest.raises(UserError, match=r"missing\.npy"):
            source.fetch(100)
        source.close()
    source = x4.open("mapped", plan, reads)
    assert source.fetch(0).patches().images.keys() == {"centroid", "centroid_lr"}
    source.close()


def test_more_arrays_than_may_be_mapped(x4: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eco_fast.data.mapped._MAPS", 2)
    plan = x4.sampler().plan
    source, truth = (x4.open(n, plan, REAL) for n in ("mapped", "resident"))
    assert_equal_batches(source, truth, vanilla, range(20))
    source.close()


def test_visits_decode_an_image_once_for_all_its_patches() -> None:
    copies, batch, count, steps = 4, 16, 1000, 100  # within one epoch
    plan = Sampler([PATCH] * count, [PATCH] * count, 2, PATCH, batch, 0, copies).plan
    found = [visit for _, visit in visits(plan, 0, steps, 2 * copies) if visit is not None]
    wanted = {(step, sample): image for step in range(steps) for sample, image in enumerate(plan(step).index.tolist())}
    assert {place[:2]: visit.image for visit in found for place in visit.places} == wanted
    assert sum(len(visit.places) for visit in found) == len(wanted)  # nothing is cut twice
    whole = [visit for visit in found if visit.places[0].step < steps - 2 * copies]
    assert {len(visit.places) for visit in whole} == {copies}


def test_a_resumed_run_decodes_only_the_live_group() -> None:
    copies, batch, count, steps = 8, 16, 100, 400
    plan = Sampler([PATCH] * count, [PATCH] * count, 2, PATCH, batch, 0, copies).plan
    for first in (3, 57, 130, 201):
        resumed = [(step, v) for step, v in visits(plan, first, steps, 2 * copies) if v is not None]
        live = [v for step, v in resumed if step < first + 2]
        assert len(live) <= 4 * batch  # two groups at most, where a group ends
        assert min(place.step for _, v in resumed for place in v.places) == first


@dali
def test_files_decode_no_more_often_than_promised(x4: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where groups are nearly two batches long, so that the patches of an image spread farthest."""
    copies, batch, count, steps = 4, 16, 31, 60
    files = ImageFiles(4, torch.full((count,), 61), torch.full((count,), 83), [x4.originals[3]] * count)
    plan = Sampler(files.heights, files.widths, 4, PATCH, batch, 0, copies).plan
    source = Files(files, plan, REAL, steps, PATCH, copies, threads=2)
    decode, decoded = source._cutter._decode, []
    monkeypatch.setattr(source._cutter, "_decode", lambda *which: decoded.append(which) or decode(*which))
    for step in range(steps):
        source.fetch(step)
    source.close()
    assert len(decoded) <= steps * batch / copies


@dali
@pytest.mark.parametrize("kind", ["palette.tif", "lzma.tif"])
def test_files_that_only_pillow_decodes_well(x4: Case, tmp_path: Path, kind: str) -> None:
    """Those that DALI decodes to other colours, and those on which it fails and must go on with the others."""
    path = tmp_path / kind
    image = Image.fromarray(x4.arrays["hr"][3])
    if kind == "palette.tif":
        image.convert("P").save(path)
    else:
        image.save(path, compression="lzma")
    whole = np.asarray(Image.open(path).convert("RGB"))
    files = x4.files._replace(hr=[*x4.originals[:3], str(path), *x4.originals[4:]])
    source = Files(files, x4.sampler().plan, REAL, STEPS, PATCH, COPIES, threads=2)
    seen = 0
    for step in range(12):
        images = source.fetch(step).patches().images
        plan = x4.sampler().plan(step)
        for k in (plan.index == 3).nonzero().flatten().tolist():
            y, x = int(plan.top[k]) * 4, int(plan.left[k]) * 4
            np.testing.assert_array_equal(images["hr"].image(k), whole[y : y + 32, x : x + 32])
            seen += 1
    source.close()
    assert seen > 3


@dali
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-400]), "broken.png"),
        (lambda path: path.unlink(), "broken.png"),
        (lambda path: path.write_bytes(DEEP_PNG), "broken.png has more than 8 bits"),
        (lambda path: Image.new("RGB", (90, 90)).save(path, "PNG"), "broken.png is 90 x 90 pixels now and was 83 x 61"),
    ],
)
def test_a_file_that_changed_under_training_is_named(
    x4: Case, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    path = tmp_path / "broken.png"
    Image.fromarray(x4.arrays["hr"][3]).save(path)
    files = x4.files._replace(hr=[*x4.originals[:3], str(path), *x4.originals[4:]])
    spoil(path)
    source = Files(files, x4.sampler().plan, REAL, STEPS, PATCH, COPIES, threads=2)
    with pytest.raises(UserError, match=message) as error:
        for step in range(20):
            source.fetch(step)
    assert "\n" not in str(error.value)
    source.close()


@pytest.mark.parametrize("content", ["empty", "no array", "short", "missing", "smaller", "fp32", "Fortran"])
def test_a_broken_array_is_named(x4: Case, tmp_path: Path, content: str) -> None:
    path, whole = tmp_path / "broken.npy", Path(x4.stored.hr[3]).read_bytes()
    match content:
        case "empty":
            path.write_bytes(b"")
        case "no array":
            path.write_bytes(b"no array")
        case "short":
            path.write_bytes(whole[:-400])
        case "smaller":
            np.save(path, x4.arrays["hr"][0])
        case "fp32":
            np.save(path, x4.arrays["hr"][3].astype(np.float32))
        case "Fortran":
            np.save(path, np.asfortranarray(x4.arrays["hr"][3]))
    files = x4.stored._replace(hr=[*x4.stored.hr[:3], str(path), *x4.stored.hr[4:]])
    source = Mapped(files, x4.sampler().plan, REAL, STEPS, PATCH, threads=2)
    with pytest.raises(UserError, match=r"cannot read patches: .*broken\.npy.*--verify") as error:
        for step in range(20):
            source.fetch(step)
    assert "\n" not in str(error.value)
    source.close()


@dali
def test_nothing_runs_after_close(x4: Case) -> None:
    for name in ("mapped", "files"):
        before = threading.active_count()
        source = x4.open(name, x4.sampler().plan, REAL)
        source.fetch(0)
        assert threading.active_count() > before
        source.close()
        assert threading.active_count() == before


def test_without_dali_files_says_what_to_install(x4: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [m for m in sys.modules if m.startswith("nvidia")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "nvidia", None)
    plan = x4.sampler().plan
    for name in ("resident", "mapped"):
        source = x4.open(name, plan, REAL)
        assert make_batch(source.fetch(0).patches(), *vanilla(0)).x.shape == (BATCH, 3, PATCH, PATCH)
        source.close()
    with pytest.raises(UserError, match=r"data.source=files needs NVIDIA DALI.*pip install nvidia-dali-cuda130"):
        x4.open("files", plan, REAL)


def test_what_images_take(x4: Case) -> None:
    stored = resident_bytes(x4.hr_heights, x4.hr_widths, 4, centroids=False)
    assert stored == x4.resident.hr.data.numel() + x4.resident.lr.data.numel()
    assert resident_bytes(x4.hr_heights, x4.hr_widths, 4, centroids=True) == 2 * stored
    assert 2**20 < free_memory("cpu") < 2**50


def test_what_pytorch_keeps_of_a_gpu_and_does_not_use_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20)
    assert free_memory("cuda") == 150


@pytest.mark.parametrize("source", ["mapped", "files"], indirect=True)
def test_memory_is_taken_by_the_thread_that_fetches(x4: Case, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinning asks for the current GPU, and to other threads that is the first one, whatever the process trains on."""
    takers, take = set(), SideBySide.room

    def room(self: SideBySide, kinds: tuple[str, ...]) -> object:
        takers.add(threading.current_thread())
        return take(self, kinds)

    monkeypatch.setattr(SideBySide, "room", room)
    opened = x4.open(source, x4.sampler().plan, REAL)
    for step in range(3):
        opened.fetch(step)
    opened.close()
    assert takers == {threading.current_thread()}


def test_patches_lie_side_by_side_without_a_copy() -> None:
    side_by_side = SideBySide(4, 8, 3, 2, "cpu")
    plan = Plan.of(torch.arange(52).view(13, 4))
    whole = side_by_side.room(KINDS)
    parts = side_by_side.parts(whole, KINDS, plan)
    assert [tuple(part.shape) for part in parts.values()] == [(4, s, s, 3) for s in (8, 8, 16, 16, 14)]
    places = [(part.data_ptr(), part.data_ptr() + part.numel()) for part in parts.values()]
    assert all(end <= start for (_, end), (start, _) in pairwise(places))
    for value, part in enumerate(parts.values()):
        part.fill_(value)
    patches = side_by_side.fetched(whole, KINDS).patches()
    assert patches.window is not None and (patches.window == 4).all()
    for value, kind in enumerate(KINDS[:4]):
        images = patches.images[kind]
        assert images.data.data_ptr() == parts[kind].data_ptr()
        assert all((images.image(i) == value).all() for i in range(4))
    assert patches.plan.index.tolist() == [0, 1, 2, 3]
    assert patches.plan.top.tolist() == patches.plan.left.tolist() == [0] * 4
    assert patches.plan.orientation.tolist() == [12, 13, 14, 15]
    assert patches.plan.inner_top.tolist() == [20, 21, 22, 23]
