"""`eco-fast prepare` against plain DALI decoding of the same files, in turns, so that a drift falls on all.

Photographs (see photographs.py) tiled to 2040 x 1356 pixels, PNG, in the page cache. What is written goes to the page
cache too; how fast a disk takes it is not measured.
"""

import os
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from photographs import photographs, tiled
from PIL import Image
from rows import Record
from test_data import PACKAGES

from eco_fast.data.dali import load_dali
from eco_fast.data.make_store import prepare

ROUNDS, FILES = 3, 24
TARGETS = {"decode + write": 0.65, "with x4": 0.50, "with x2, x3, x4": None}


@pytest.fixture(scope="module")
def folder(quick: bool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    sources = photographs(tmp_path_factory.mktemp("sources"))
    made = tmp_path_factory.mktemp("tiles")
    for i in range(4 if quick else FILES):
        Image.fromarray(tiled(sources[i % len(sources) :: FILES], 1356, 2040)).save(made / f"tile{i:02}.png")
    return made


def decode(files: list[str]) -> None:
    """All files, by DALI alone."""
    dali = load_dali("decoding")
    pipeline = dali.Pipeline(batch_size=4, num_threads=len(os.sched_getaffinity(0)), device_id=None)
    with pipeline:
        encoded, _ = dali.fn.readers.file(files=files)
        pipeline.set_outputs(dali.fn.decoders.image(encoded, output_type=dali.types.RGB))
    pipeline.build()
    for _ in range(len(files) // 4):
        pipeline.run()


@pytest.mark.benchmark(group="prepare")
def test_prepare_against_plain_decoding(
    benchmark: Any, record: Record, folder: Path, tmp_path: Path, has_dali: Callable[[str], bool]
) -> None:
    files = [str(path) for path in sorted(folder.iterdir())]

    def prepared(scales: list[int]) -> Callable[[], None]:
        def run() -> None:
            prepare([folder], scales, tmp_path / "store")
            shutil.rmtree(tmp_path / "store")

        return run

    contestants = {
        **({"plain decoding": lambda: decode(files)} if has_dali("plain decoding") else {}),
        "decode + write": prepared([]),
        "with x4": prepared([4]),
        "with x2, x3, x4": prepared([2, 3, 4]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(ROUNDS + 1):
        for name, run in contestants.items():
            started = time.perf_counter()
            run()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    plain = median.get("plain decoding")
    for name, value in median.items():
        record(
            name,
            *PACKAGES,
            ms_per_image=round(1000 * value / len(files), 1),
            of_decoding=None if plain is None else round(plain / value, 3),
            target=TARGETS.get(name),
        )
    benchmark.pedantic(contestants["with x4"], rounds=1)
