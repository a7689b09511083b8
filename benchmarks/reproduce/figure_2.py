"""Fig. 2 of the paper: how smooth the loss is along the update, `vanilla` against `eco`.

As in Santurkar et al. 2018, "How Does Batch Normalization Help Optimization?": at chosen steps the loss of the step's
own batch, and its gradient, are computed at several lengths along a direction from the weights. Kept are the lowest and
the highest loss, and the largest distance of a gradient to the one at the start. Lengths are multiples of the length of
the optimiser's own update of that step; the directions are that update, and the gradient downhill.
"""

import statistics
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks.reproduce.figures import COLOURS, Row, command, save, write
from benchmarks.reproduce.lab import SEEDS, Lab, Trial
from eco_fast.display import Display
from eco_fast.train.batches import Batch
from eco_fast.train.inputs import load_inputs
from eco_fast.train.loop import Loop
from eco_fast.train.machine import configure, resolve
from eco_fast.train.run_folder import RunFolder
from eco_fast.train.update import make_update
from eco_kernels import eco_loss_with_grad

STEPS, EVERY = 4000, 40
LENGTHS = (0.5, 1.0, 2.0, 4.0)  # of the optimiser's update
DIRECTIONS = {"update": "along the update", "gradient": "along the gradient"}
TRIALS = [
    Trial(mode, seed, teacher, steps=STEPS)
    for seed in SEEDS
    for mode, teacher in (("vanilla", "none"), ("eco", "rlfn-s"))
]


def probe(lab: Lab, trial: Trial) -> list[Row]:
    """Train one student and look around its weights every `EVERY` steps."""
    config = resolve(lab.config(trial))
    configure(config.run)
    quiet = Display(Console(quiet=True))
    inputs = load_inputs(config, None, quiet)
    folder = RunFolder(lab.work / "figure_2" / trial.name, 1)
    folder.path.mkdir(parents=True, exist_ok=True)
    loop = Loop(config, folder, inputs, make_update(config, inputs.student), quiet)
    rows: list[Row] = []
    for step in range(trial.steps):
        if step % EVERY:
            loop.advance(step)
            continue
        batch, before = loop.batches.maker(step), _weights(inputs.student)
        loop.advance(step)
        after = _weights(inputs.student)
        rows += [{**trial.columns(), "step": step, **found} for found in _look(inputs.student, batch, before, after)]
    loop.close()
    return rows


def _look(student: nn.Module, batch: Batch, before: Tensor, after: Tensor) -> Iterator[Row]:
    """Along both directions; the student gets the weights `after` back."""
    update = after - before
    loss, gradient = _loss_and_gradient(student, batch, before)
    downhill = -gradient * (update.norm() / gradient.norm())
    for name, direction in (("update", update), ("gradient", downhill)):
        found = [_loss_and_gradient(student, batch, before + length * direction) for length in LENGTHS]
        losses = [loss, *(each for each, _ in found)]
        yield {
            "direction": name,
            "loss": loss,
            "lowest_loss": min(losses),
            "highest_loss": max(losses),
            "gradient_norm": gradient.norm().item(),
            "gradient_difference": max((each - gradient).norm().item() for _, each in found),
            "update_norm": update.norm().item(),
        }
    _set_weights(student, after)


def _loss_and_gradient(student: nn.Module, batch: Batch, weights: Tensor) -> tuple[float, Tensor]:
    """In fp32; the loss is on the 0-255 scale, the gradient `(parameters,)`."""
    _set_weights(student, weights)
    sr = student(batch.x)
    loss, grad = eco_loss_with_grad(sr.detach(), batch.hr, batch.centroid, batch.alpha, scale_factor=255.0)
    gradients = torch.autograd.grad(sr, list(student.parameters()), grad)
    return loss.item(), torch.cat([each.reshape(-1) for each in gradients])


def _weights(student: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in student.parameters()])


def _set_weights(student: nn.Module, weights: Tensor) -> None:
    with torch.no_grad():
        for p, values in zip(
            student.parameters(), weights.split([p.numel() for p in student.parameters()]), strict=True
        ):
            p.copy_(values.view_as(p))


def make(lab: Lab, out: Path) -> None:
    """Reproduce Fig. 2: gradient difference and loss variation during training."""
    lab.prepare(trial.teacher for trial in TRIALS)
    rows: list[Row] = []
    with ProcessPoolExecutor(lab.jobs, get_context("spawn")) as pool, lab.display.count("Fig. 2, runs") as show:
        for done, found in enumerate(pool.map(probe, [lab] * len(TRIALS), TRIALS), start=1):
            rows += found
            show(done, len(TRIALS))
    write(out / "figure_2.csv", rows)
    save(out / "figure_2.png", lambda figure: draw(figure, rows), size=(10, 7))
    for direction in DIRECTIONS:
        for mode in ("vanilla", "eco"):
            mine = [row for row in rows if row["mode"] == mode and row["direction"] == direction]
            print(
                f"{DIRECTIONS[direction]}, {mode}: largest gradient difference, median {median(mine, difference):.2f}, "
                f"highest {max(map(difference, mine)):.1f}; loss variation, median {median(mine, variation):.3f}, "
                f"highest {max(map(variation, mine)):.2f}"
            )


def difference(row: Row) -> float:
    """Largest distance between gradients."""
    return float(str(row["gradient_difference"]))


def variation(row: Row) -> float:
    """Highest minus lowest loss."""
    return float(str(row["highest_loss"])) - float(str(row["lowest_loss"]))


def median(rows: list[Row], value: Any) -> float:
    """Over probes and seeds."""
    return statistics.median(map(value, rows))


def draw(figure: Any, rows: list[Row]) -> None:
    """Both figures over the steps, mean and range over the seeds, one column per direction."""
    grid = figure.subplots(2, 2, sharex=True, sharey="row")
    for column, (direction, title) in enumerate(DIRECTIONS.items()):
        for axes, value in zip(grid[:, column], (difference, variation), strict=True):
            for mode in ("vanilla", "eco"):
                steps = list(range(0, STEPS, EVERY))
                at = {step: [] for step in steps}
                for row in rows:
                    if row["mode"] == mode and row["direction"] == direction:
                        at[row["step"]].append(value(row))
                axes.plot(steps, [statistics.fmean(at[s]) for s in steps], color=COLOURS[mode], label=mode, lw=1.3)
                axes.fill_between(
                    steps,
                    [min(at[s]) for s in steps],
                    [max(at[s]) for s in steps],
                    color=COLOURS[mode],
                    alpha=0.18,
                    lw=0,
                )
            axes.set_yscale("log")
        grid[0, column].set_title(title)
        grid[1, column].set_xlabel("step")
    grid[0, 0].set_ylabel("largest gradient difference")
    grid[1, 0].set_ylabel("highest - lowest loss")
    grid[0, 0].legend(frameon=False)


if __name__ == "__main__":
    command(make)
