"""Training patches per second of every source against a PyTorch DataLoader that decodes whole images per patch.

192-px HR patches at x4, batch 16, photographs (see photographs.py) tiled to 2040 x 1356 pixels. The baseline is what
published training code does: 2 workers, prefetch factor 2, the whole HR and LR PNG decoded by Pillow for one patch. All
contestants run in turns in one process, page cache warm, and end with the same thing: oriented patches, the input as
fp32, on the device that trains. `mapped` runs once more with files that the page cache has been asked to forget; its
row says how many of them had gone. Rows: patches per second, their ratio to the baseline; how long a training step
waits for `mapped`; its memory.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from photographs import photographs, tiled
from PIL import Image
from recorded import clock
from rows import Record
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from eco_fast.config import parse_config
from eco_fast.data.files import Files, ImageFiles, visits
from eco_fast.data.flat import FlatImages, TrainingSet
from eco_fast.data.mapped import ArrayFiles, Mapped
from eco_fast.data.pixels import bicubic_lr
from eco_fast.data.sampler import Plan, Sampler
from eco_fast.data.source import Resident, Source
from eco_fast.eco.objective import Blend
from eco_fast.models import build
from eco_fast.train.batches import make_batch
from eco_fast.train.lane import streams_of
from eco_fast.train.machine import configure, device_type, resolve
from eco_fast.train.update import make_update

SCALE, PATCH, BATCH, COPIES = 4, 48, 16, 16
FILES, ENTRIES = 16, 64  # each file stands for four images, so that one decode serves COPIES patches, as in a large set
ROUNDS = 3
COLD = "mapped, cold files"
BATCHES = {"loader": 12, "mapped": 200, COLD: 8, "resident": 200, "files": 2 * ENTRIES}  # per round
TARGETS = {"mapped": 80, COLD: None, "resident": 300, "files": 10}  # times the baseline's patches per second
WARM_UP = 8  # batches: more than a pipeline has ready before it is asked
STEPS = 100_000
MEMORY_LIMIT = 1500  # MB

PACKAGES = ("nvidia-dali-cuda130", "pillow", "numpy")
Fetch = Callable[[], object]


class Photos(NamedTuple):
    """The same images in every form."""

    pngs: list[str]
    lr_pngs: list[str]
    arrays: ArrayFiles
    files: ImageFiles
    resident: TrainingSet


@pytest.fixture(scope="module")
def photos(quick: bool, tmp_path_factory: pytest.TempPathFactory) -> Photos:
    folder = tmp_path_factory.mktemp("photos")
    sources = photographs(folder / "sources")
    height, width = (336, 508) if quick else (1356, 2040)
    hr, lr, paths = [], [], {}
    for i in range(FILES):
        hr.append(tiled(sources[i % len(sources) :: FILES], height, width))
        lr.append(bicubic_lr(hr[-1], SCALE))
        for kind, image in (("hr", hr[-1]), ("lr", lr[-1])):
            Image.fromarray(image).save(folder / f"{kind}{i}.png")
            np.save(folder / f"{kind}{i}.npy", image)
    number = [i % FILES for i in range(ENTRIES)]
    for kind in ("hr", "lr"):
        for ending in ("png", "npy"):
            paths[kind, ending] = [str(folder / f"{kind}{i}.{ending}") for i in number]
    heights, widths = torch.full((ENTRIES,), height), torch.full((ENTRIES,), width)
    arrays = ArrayFiles(SCALE, heights // SCALE, widths // SCALE, paths["hr", "npy"], paths["lr", "npy"])
    files = ImageFiles(SCALE, heights, widths, paths["hr", "png"])
    flat = [FlatImages.from_arrays(images) for images in (hr, lr)]
    return Photos(paths["hr", "png"], paths["lr", "png"], arrays, files, TrainingSet(*flat, SCALE))


class WholeImages(Dataset[tuple[Tensor, Tensor]]):
    """Patch k of a sequence of plans, from PNG files decoded whole."""

    def __init__(self, photos: Photos, plan: Callable[[int], Plan], steps: int) -> None:
        self._photos, self._plan, self._steps = photos, plan, steps

    def __len__(self) -> int:
        return self._steps * BATCH

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor]:
        plan = self._plan(k // BATCH)
        image, top, left, turn = (int(column[k % BATCH]) for column in plan[:4])
        pair = []
        for path, scale in ((self._photos.pngs[image], SCALE), (self._photos.lr_pngs[image], 1)):
            whole = np.array(Image.open(path).convert("RGB"))
            side, y, x = PATCH * scale, top * scale, left * scale
            patch = whole[y : y + side, x : x + side]
            patch = patch[:, ::-1] if turn & 1 else patch
            patch = patch[::-1] if turn & 2 else patch
            patch = patch.transpose(1, 0, 2) if turn & 4 else patch
            pair.append(torch.from_numpy(np.ascontiguousarray(patch.transpose(2, 0, 1))))
        hr, lr = pair
        return hr, lr.float() / 255


def plan_of(photos: Photos, copies: int = 1) -> Callable[[int], Plan]:
    # Scale 1 in the place of 4: an image then counts once per epoch however large it is, as in a large set.
    return Sampler(photos.arrays.heights, photos.arrays.widths, 1, PATCH, BATCH, 0, copies).plan


def vanilla(step: int) -> tuple[str, ...]:
    """The kinds of image that a step of mode `vanilla` reads."""
    return "lr", "hr"


def once(plan: Plan) -> Plan:
    """The plan for a set that holds each file once."""
    return plan._replace(index=plan.index % FILES)


def from_source(source: Source) -> Fetch:
    device = device_type("auto")
    steps, real = iter(range(STEPS)), Blend(*torch.ones(2, device=device))

    def fetch() -> object:
        return make_batch(source.fetch(next(steps)).patches(device), real, vanilla(0))

    return fetch


class Rates(NamedTuple):
    """The contest's outcome."""

    seconds: dict[str, list[float]]  # per patch, of each round
    gone: float | None  # share of the files that had left the page cache before the cold rounds

    def median(self, name: str) -> float:
        """Patches per second in the median round."""
        return 1 / statistics.median(self.seconds[name])


def forget(paths: Iterable[str]) -> float | None:
    """Ask the page cache to forget files; the share of them that it has forgotten, None where it does not say."""
    os.sync()  # what is not written yet cannot be forgotten
    gone = []
    for path in sorted(set(paths)):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            middle = os.fstat(descriptor).st_size // 2
            os.preadv(descriptor, [bytearray(1)], middle, os.RWF_NOWAIT)
            gone.append(False)
        except BlockingIOError:
            gone.append(True)
        except OSError:  # a file system that cannot be asked this way
            return None
        finally:
            os.close(descriptor)
    return statistics.fmean(gone)


@pytest.fixture(scope="module")
def rates(photos: Photos, quick: bool, has_dali: Callable[[str], bool]) -> Rates:
    """All contestants in turns."""
    plan = plan_of(photos)
    # Its workers are forked before any other thread runs, and stay.
    loader = DataLoader(
        WholeImages(photos, plan, BATCHES["loader"]),
        batch_size=BATCH,
        num_workers=2,
        prefetch_factor=2,
        persistent_workers=True,
        pin_memory=torch.cuda.is_available(),
    )
    first = seconds_of_loader(loader)
    device = device_type("auto")
    sources: dict[str, Source] = {
        "resident": Resident(photos.resident.to(device), lambda step: once(plan(step)).row.to(device), vanilla, PATCH),
        "mapped": Mapped(photos.arrays, plan, vanilla, STEPS, PATCH, device=device),
    }
    if has_dali("files"):
        sources["files"] = Files(photos.files, plan_of(photos, COPIES), vanilla, STEPS, PATCH, COPIES, device=device)
    fetch = {name: from_source(source) for name, source in sources.items()}
    found: dict[str, list[float]] = {name: [] for name in ("loader", *fetch, COLD)}
    shares: list[float | None] = []
    for number in range(1 if quick else ROUNDS):
        found["loader"].append(seconds_of_loader(loader) if number else first)
        for name, call in fetch.items():
            for _ in range(WARM_UP):
                call()
            found[name].append(seconds_per_patch(call, WARM_UP if quick else BATCHES[name], device))
        time.sleep(0.5 if quick else 3.0)  # `files` has begun its next images, and must leave the cores to the others
        sources["mapped"].close()  # what is mapped stays in the page cache
        shares.append(forget([*photos.arrays.hr, *photos.arrays.lr]))
        cold = Mapped(photos.arrays, plan, vanilla, STEPS, PATCH, device=device)
        found[COLD].append(seconds_per_patch(from_source(cold), BATCHES[COLD], device))
        cold.close()
        sources["mapped"] = Mapped(photos.arrays, plan, vanilla, STEPS, PATCH, device=device)
        fetch["mapped"] = from_source(sources["mapped"])
    for source in sources.values():
        source.close()
    known = [share for share in shares if share is not None]
    return Rates(found, min(known) if len(known) == len(shares) else None)


def seconds_per_patch(fetch: Fetch, batches: int, device: str) -> float:
    synchronize = streams_of(device).synchronize
    synchronize()
    started = time.perf_counter()
    for _ in range(batches):
        fetch()
    synchronize()
    return (time.perf_counter() - started) / (batches * BATCH)


def seconds_of_loader(loader: DataLoader[tuple[Tensor, Tensor]]) -> float:
    """Seconds per patch, over a whole short epoch: no work was done before it, and none is left over."""
    device = device_type("auto")
    started = time.perf_counter()
    batches = 0
    for pair in loader:
        _ = [tensor.to(device, non_blocking=True) for tensor in pair]
        batches += 1
    streams_of(device).synchronize()
    return (time.perf_counter() - started) / (batches * BATCH)


@pytest.mark.benchmark(group="patches per second", timer=clock)
@pytest.mark.parametrize("name", ["loader", *TARGETS])
def test_patches_per_second(record: Record, photos: Photos, rates: Rates, name: str) -> None:
    if name not in rates.seconds:
        pytest.skip("NVIDIA DALI is not installed")
    rate, baseline = rates.median(name), rates.median("loader")
    found = [v for _, v in visits(plan_of(photos, COPIES), 0, 256, 2 * COPIES) if v is not None]
    record(
        name,
        rates.seconds[name],
        *PACKAGES,
        patches_per_second=round(rate, 1),
        slowest_round=round(1 / max(rates.seconds[name]), 1),
        ms_per_patch=round(1000 / rate, 3),
        ratio=round(rate / baseline, 1),
        of="speed of loader",
        target=TARGETS.get(name, 1),
        files_not_cached=rates.gone if name == COLD else None,
        patches_per_decode=round(256 * BATCH / len(found), 1) if name == "files" else None,
    )


@pytest.mark.benchmark(group="wait for mapped", timer=clock)
@pytest.mark.parametrize("network", ["edsr-tiny", "edsr-baseline"])
def test_wait_of_a_training_step(record: Record, photos: Photos, quick: bool, network: str) -> None:
    """How much of a step passes in `fetch`, with threads that cut in the background as in training."""
    document = {"scale": SCALE, "mode": "vanilla", "student": {"name": network}, "data": {"patch": PATCH}}
    config = resolve(parse_config(document, "benchmark"))
    configure(config.run)
    student = build(network, SCALE).to(config.run.device).to(memory_format=torch.channels_last)
    update = make_update(config, student)
    source = Mapped(photos.arrays, plan_of(photos), vanilla, STEPS, PATCH, device=config.run.device)
    real = Blend(*torch.ones(2, device=config.run.device))
    waits, steps = [], []
    for step in range(2 if quick else 8 if network == "edsr-baseline" else 40):
        started = time.perf_counter()
        patches = source.fetch(step).patches(config.run.device)
        waits.append(time.perf_counter() - started)
        update.schedule(step)
        update(make_batch(patches, real, vanilla(step)))[0].item()
        steps.append(time.perf_counter() - started)
    source.close()
    wait, whole = statistics.median(waits[1:]), statistics.median(steps[1:])
    record(
        f"wait of {network} for mapped",
        waits[1:],
        *PACKAGES,
        wait_ms=round(1000 * wait, 2),
        longest_wait_ms=round(1000 * max(waits[1:]), 2),
        step_ms=round(1000 * whole, 1),
        percent=round(100 * wait / whole, 2),
        precision=config.run.precision,
    )


@pytest.mark.benchmark(group="memory of mapped", timer=clock)
def test_peak_memory(record: Record, tmp_path: Path, quick: bool) -> None:
    """The memory of a process of its own, which reads images of 24 megapixels and lists a million of them."""
    height, width = (600, 400) if quick else (6000, 4000)
    for i in range(4):
        for kind, factor in (("hr", 1), ("lr", SCALE)):
            np.save(tmp_path / f"{kind}{i}.npy", np.full((height // factor, width // factor, 3), i, dtype=np.uint8))
    images, batches = (10_000, 50) if quick else (1_000_000, 1100)
    size = {"height": height // SCALE, "width": width // SCALE}
    task = {"folder": str(tmp_path), **size, "images": images, "batches": batches}
    started = time.perf_counter()
    result = subprocess.run(
        [sys.executable, __file__, json.dumps(task)], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    peak = int(result.stdout)
    seconds = time.perf_counter() - started
    record("memory of mapped", [seconds], *PACKAGES, peak_mb=peak, limit_mb=MEMORY_LIMIT, images=images)
    assert peak < MEMORY_LIMIT or torch.version.cuda is not None  # a CUDA build brings hundreds of MB of its own


def read_and_weigh(folder: str, height: int, width: int, images: int, batches: int) -> int:
    """Memory in MB after some batches of `mapped`, without the pages of files, which the system takes back."""
    paths = {kind: [f"{folder}/{kind}{i % 4}.npy" for i in range(images)] for kind in ("hr", "lr")}
    heights, widths = torch.full((images,), height), torch.full((images,), width)
    plan = Sampler(heights, widths, 1, PATCH, BATCH, seed=0).plan
    source = Mapped(ArrayFiles(SCALE, heights, widths, **paths), plan, vanilla, STEPS, PATCH)
    for step in range(batches):
        source.fetch(step)
    source.close()
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) // 1024 for line in status if line.startswith("RssAnon:"))


if __name__ == "__main__":
    print(read_and_weigh(**json.loads(sys.argv[1])))
