"""What Python takes of a step whose batch and update are CUDA graphs: the ceiling of steps per second on a GPU.

    python benchmarks/host_time.py [--csv FILE] [--steps N]

The production loop runs on the CPU with a driver that does nothing: graphs replay nothing, streams and events order
nothing. Copies to where graphs read are made, on the CPU. What the real driver takes for two replays, three copies and
four events comes on top. Time is that of the thread that trains.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rows import write_figures
from steps import Bench

from eco_fast.display import Display
from eco_fast.train import graph
from eco_fast.train.guard import CollapseGuard
from eco_fast.train.inputs import load_inputs
from eco_fast.train.loop import Loop
from eco_fast.train.run_folder import RunFolder
from eco_fast.train.update import make_update

ROUNDS = 20
SOURCES = {"resident": "cached", "mapped": "cached", "online": "online"}  # and their teachers


class NoDriver:
    """What `Graphs` uses of `torch.cuda`."""

    def __init__(self) -> None:
        self.stream, self.current_stream = torch.cpu.stream, torch.cpu.current_stream

    def Stream(self, priority: int) -> torch.cpu.Stream:
        return torch.cpu.Stream()

    def CUDAGraph(self) -> Any:
        return SimpleNamespace(replay=lambda: None)

    def graph_pool_handle(self) -> object:
        return object()

    def synchronize(self) -> None: ...

    @contextmanager
    def graph(self, *_: object, **__: object) -> Iterator[None]:
        yield


def seconds_per_step(kind: str, steps: int) -> list[float]:
    """Of each round."""
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        bench = Bench("edsr-tiny", Path(folder, "bench"), device="cpu")
        config = bench.config(
            mode="eco",
            alpha__schedule="constant",
            alpha__value=0.5,
            data__source="mapped" if kind == "mapped" else "resident",
            teacher__mode=SOURCES[kind],
            run__log_every=100,
            run__graph=True,
        )
        display = Display(Console(quiet=True))
        inputs = load_inputs(config, bench.teacher(), display)
        run_folder = RunFolder(Path(config.run.out), 1)
        run_folder.path.mkdir()
        with (
            mock.patch.object(graph, "torch", SimpleNamespace(cuda=NoDriver())),
            mock.patch.object(torch.Tensor, "record_stream", lambda *_: None),
            mock.patch.object(CollapseGuard, "look", lambda *_: torch.ones(())),  # a forward pass, at a line of the log
        ):
            loop = Loop(config, run_folder, inputs, make_update(config, inputs.student), display)
            seconds, done = [], 0
            for number in range(ROUNDS + 1):
                started = time.thread_time()
                for step in range(done, done + steps):
                    loop.advance(step)
                done += steps
                if number:  # the first round warms up and captures
                    seconds.append((time.thread_time() - started) / steps)
            loop.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--steps", type=int, default=512, help="per round")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for kind in SOURCES:
        seconds = seconds_per_step(kind, options.steps)
        row = {"source": kind, "teacher": SOURCES[kind]}
        rows.append(row | {"us": round(1e6 * statistics.median(seconds), 1), "least_us": round(1e6 * min(seconds), 1)})
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    if options.csv is not None:
        write_figures(options.csv, rows)


if __name__ == "__main__":
    main()
