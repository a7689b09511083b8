"""`eco-fast prepare` against plain DALI decoding of the same files, in turns, so that a drift falls on all.

Photographs (see photographs.py) tiled to 2040 x 1356 pixels, PNG, in the page cache. What is written goes to the page
cache too; how fast a disk takes it is not measured.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from photographs import photographs, tiled
from PIL import Image
from recorded import clock
from rows import Record
from steps import in_turns, medians_ms
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


@pytest.mark.benchmark(group="prepare", timer=clock)
def test_prepare_against_plain_decoding(
    record: Record, folder: Path, tmp_path: Path, has_dali: Callable[[str], bool]
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
    seconds = in_turns({name: lambda count, run=run: run() for name, run in contestants.items()}, 1, ROUNDS)
    median = medians_ms(seconds)
    plain = median.get("plain decoding")
    for name, value in median.items():
        record(
            name,
            seconds[name],
            *PACKAGES,
            ms_per_image=round(value / len(files), 1),
            of_decoding=None if plain is None else round(plain / value, 3),
            target=TARGETS.get(name),
        )
