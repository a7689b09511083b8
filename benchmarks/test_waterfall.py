"""ECO training with one switch after the other turned on, from plain PyTorch in fp32 to everything.

Times are medians of steps run in turns; memory (GPUs only) and the final loss, the mean of the last quarter, are of a
second pass, in which each contestant trains alone for the same steps from the same weights on the same patches. Only
the first row, which draws its own, has others.
"""

import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from plain import PlainTrainer
from recorded import clock
from rows import Record
from step_contest import ECO, switches
from steps import CASES, WIDTHS, Bench, Steps, in_turns, medians_ms

from eco_fast.models import build
from eco_fast.train.lane import streams_of
from eco_fast.train.machine import configure

TRAINED = {"edsr-tiny": 40, "edsr-baseline": 40 if torch.cuda.is_available() else 4}  # steps of the second pass
LAST = 4  # the final loss is over the last quarter of them


class PlainRun:
    """The first row: what one would write without this project."""

    def __init__(self, bench: Bench) -> None:
        self.losses: list[float] = []
        self._run = bench.config(run__precision="fp32").run
        self._trainer = PlainTrainer(
            bench.images,
            bench.scale,
            patch=bench.patch,
            batch=bench.batch,
            lr=2e-4,
            bf16=False,
            device=bench.device,
            **WIDTHS[bench.network],
        )

    def __call__(self, count: int) -> None:
        configure(self._run)  # no TF32, which another contestant may have allowed
        self.losses += [self._trainer.step(0.5) for _ in range(count)]


@pytest.mark.benchmark(group="waterfall", timer=clock)
@pytest.mark.parametrize("network", CASES)
def test_waterfall(record: Record, tmp_path: Path, quick: bool, network: str) -> None:
    bench = Bench(network, tmp_path / "bench", quick=quick)
    trained = LAST if quick else TRAINED[network]
    rows = switches(bench.device)

    def loop(name: str, folder: str, log_every: int) -> Steps:
        return bench.loop(**ECO, **rows[name], run__out=str(tmp_path / folder), run__log_every=log_every)

    contestants: dict[str, Steps] = {"plain PyTorch, fp32": PlainRun(bench)}
    contestants |= {name: loop(name, f"timed{i}", 1000) for i, name in enumerate(rows)}
    *_, steps, rounds = CASES[network]
    seconds = in_turns(contestants, 1 if quick else steps, 1 if quick else max(8, rounds - 6))
    ms = medians_ms(seconds)
    contestants.clear()  # memory is of each alone

    for i, (name, value) in enumerate(ms.items()):
        memory = start_of_memory(bench.device)
        if name in rows:
            loop(name, f"alone{i}", trained // LAST)(trained)
            loss = bench.losses(str(tmp_path / f"alone{i}"))[-1]
        else:
            alone = PlainRun(bench)
            alone(trained)
            loss = statistics.fmean(alone.losses[-trained // LAST :])
            del alone
        record(
            f"{network}, {name}",
            seconds[name],
            ms_per_step=round(value, 2),
            ratio=round(ms["plain PyTorch, fp32"] / value, 3),
            of="speed of plain PyTorch",
            memory_mb=memory(),
            final_loss=round(loss, 4),
            steps=trained,
            parameters=sum(p.numel() for p in build(network, bench.scale).parameters()),
        )


def start_of_memory(device: str) -> Callable[[], int | None]:
    """A function that tells the MB that were needed on a GPU since now; None on a CPU, which keeps no such count."""
    if device != "cuda":
        return lambda: None
    streams_of(device).synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    return lambda: (torch.cuda.max_memory_allocated() - before) >> 20
