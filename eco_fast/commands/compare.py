"""`eco-fast compare`: the validation of several runs, over steps and over time."""

import json
import statistics
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from eco_fast.console import plain_console
from eco_fast.errors import UserError
from eco_fast.figure import save_figure

_PAUSE = 10.0  # an interruption: so many minutes without a record, and so many times the usual


class Curve(NamedTuple):
    """What a run has logged, in the order of its steps."""

    steps: list[int]  # with a validation
    minutes: list[float]  # since the first record, without interruptions
    psnr_y: list[float]
    last_step: int
    duration: float  # minutes from the first to the last record


def compare_runs(runs: Sequence[Path], out: Path) -> dict[str, Curve]:
    """Print a table of the runs and write a PNG of their PSNR-Y over steps and over time.

    Raises:
        UserError: A run has no validation yet or its metrics are damaged, or the PNG cannot be written.
    """
    curves = {label: read_curve(run) for label, run in _labels(runs).items()}
    _print(curves)
    _draw(curves, out)
    print(f"curves: {out}")
    return curves


def read_curve(run: Path) -> Curve:
    """The validation of one run.

    A resumed run may hold a step twice: the later record counts. The clock stands still while a run is interrupted.

    Raises:
        UserError: There are no metrics, or none of a validation.
    """
    records = _records(run)
    clock = _minutes([record["time"] for record in records])
    valid = {
        record["step"]: (minutes, record["psnr_y"])
        for record, minutes in zip(records, clock, strict=True)
        if record["kind"] == "valid"
    }
    if not valid:
        raise UserError(f"{run} has no validation yet; train longer or leave it out")
    steps = sorted(valid)
    return Curve(
        steps,
        [valid[step][0] for step in steps],
        [valid[step][1] for step in steps],
        max(record["step"] for record in records),
        clock[-1],
    )


def _records(run: Path) -> list[dict[str, Any]]:
    file = run / "metrics.jsonl"
    try:
        # A run that is still going may have written half of its last line.
        lines = [line for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    except OSError as error:
        raise UserError(f"{run} is no run: cannot read {file} ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no text; leave the run out") from error
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            record = {**record, "step": int(record["step"]), "time": float(record["time"])}
            if record["kind"] == "valid":
                record["psnr_y"] = float(record["psnr_y"])
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{file} is damaged in line {number}; remove that line or leave the run out") from error
        records.append(record)
    return records


def _minutes(times: Sequence[float]) -> list[float]:
    """Minutes since the first of some times in seconds; an interruption counts as long as the usual gap."""
    gaps = [max(0.0, (after - before) / 60) for before, after in pairwise(times)]
    usual = statistics.median(gaps) if gaps else 0.0
    longest = max(_PAUSE, _PAUSE * usual)
    return list(accumulate((usual if gap > longest else gap for gap in gaps), initial=0.0))[: len(times)]


def _labels(runs: Sequence[Path]) -> dict[str, Path]:
    """The runs by the names of their folders, or by their paths where names are the same."""
    if not runs:
        raise UserError("no runs to compare; name the folders of one or more")
    names = [run.resolve().name for run in runs]
    labels = {name if names.count(name) == 1 else str(run): run for name, run in zip(names, runs, strict=True)}
    if len(labels) < len(runs):
        raise UserError("a run is named twice; name each once")
    return labels


def _print(curves: Mapping[str, Curve]) -> None:
    table = Table()
    table.add_column("run")
    for column in ("best PSNR-Y dB", "at step", "last PSNR-Y dB", "steps", "minutes"):
        table.add_column(column, justify="right")
    for label, curve in curves.items():
        best = max(curve.psnr_y)
        table.add_row(
            label,
            f"{best:.3f}",
            f"{curve.steps[curve.psnr_y.index(best)]:,}",
            f"{curve.psnr_y[-1]:.3f}",
            f"{curve.last_step:,}",
            f"{curve.duration:.1f}",
        )
    plain_console().print(table)


def _draw(curves: Mapping[str, Curve], out: Path) -> None:
    def draw(figure: Any) -> None:
        over_steps, over_time = figure.subplots(1, 2, sharey=True)
        for label, curve in curves.items():
            style: dict[str, Any] = {"linewidth": 1.8, "marker": "o", "markersize": 3 if len(curve.steps) < 40 else 0}
            over_steps.plot(curve.steps, curve.psnr_y, label=label, **style)
            over_time.plot(curve.minutes, curve.psnr_y, **style)
        over_steps.set_ylabel("PSNR-Y (dB)")
        over_steps.set_xlabel("step")
        over_time.set_xlabel("minutes")
        over_steps.legend(frameon=False)

    save_figure(out, draw, (12, 4.4), "name another file with --out")
