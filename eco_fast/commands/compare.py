"""`eco-fast compare`: the validation of several runs, over steps and over time."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from eco_fast.commands.runs import RunSettings
from eco_fast.commands.tables import labels, print_in_blocks
from eco_fast.console import plain_console, say
from eco_fast.errors import UserError
from eco_fast.evaluate.benchmark import benchmark_name
from eco_fast.figure import save_figure
from eco_fast.units import duration

_PAUSE = 10.0  # an interruption: so many minutes without a record, and so many times the usual
_SAME = 0.002  # dB: figures of bicubic that differ by more are of other images


class Curve(NamedTuple):
    """What a run has logged of one validation set, in the order of its steps."""

    steps: list[int]  # with a validation
    minutes: list[float]  # since the first record, without interruptions
    psnr_y: list[float]
    last_step: int
    duration: float  # minutes from the first to the last record
    bicubic: float | None = None  # its PSNR-Y on the set; None in runs of older versions

    def reaches(self, psnr_y: float) -> int | None:
        """The first validated step with so many dB or more, None if there is none."""
        return next((step for step, value in zip(self.steps, self.psnr_y, strict=True) if value >= psnr_y), None)


class Panel(NamedTuple):
    """Runs that can be compared: of one scale, validated on the same images."""

    scale: int | None
    data: str  # name of the set
    curves: dict[str, Curve]  # by run

    @property
    def bicubic(self) -> float | None:
        """Its PSNR-Y, if one of the runs knows."""
        return next((curve.bicubic for curve in self.curves.values() if curve.bicubic is not None), None)

    @property
    def title(self) -> str:
        """Scale, set and bicubic, as far as they are known."""
        scale = "" if self.scale is None else f"x{self.scale}, "
        return f"{scale}{self.data}{'' if self.bicubic is None else f', bicubic {self.bicubic:.3f} dB'}"

    def takes(self, scale: int | None, data: str, curve: Curve) -> bool:
        """Whether a curve belongs here, as far as is known."""
        known = self.bicubic is not None and curve.bicubic is not None
        same = not known or math.isclose(self.bicubic or 0, curve.bicubic or 0, rel_tol=0, abs_tol=_SAME)
        return (scale, data) == (self.scale, self.data) and same


def compare_runs(runs: Sequence[Path], out: Path, data: str | None = None) -> list[Panel]:
    """Print a table of the runs and write a PNG of their PSNR-Y over steps and over time.

    Runs of other scales, and of other validation images, have a table and a row of the picture of their own.

    Args:
        runs: Their folders.
        out: The PNG.
        data: Name of the validation set; by default the first one that all runs of a scale have in common, or each
            run's own first one.

    Raises:
        UserError: A run has no validation yet, or none on `data`, or its files are damaged; or the PNG cannot be
            written.
    """
    named = labels(runs)
    settings = {name: RunSettings(run) for name, run in named.items()}
    curves = {name: read_curves(run) for name, run in named.items()}
    panels = _panels({name: settings[name].scale for name in named}, curves, data)
    for panel in panels:
        _print(panel, settings)
    _draw(panels, out)
    print(f"curves: {out}")
    return panels


def read_curve(run: Path) -> Curve:
    """The validation of one run on its first set, which chooses the best checkpoint. Raises as `read_curves` does."""
    return next(iter(read_curves(run).values()))


def read_curves(run: Path) -> dict[str, Curve]:
    """The validation of one run on every set, by the sets' names.

    A resumed run may hold a step twice: the later record counts. The clock stands still while a run is interrupted.
    Records of older versions name no set: they are of the first one in the run's `config.toml`.

    Raises:
        UserError: There are no metrics, or none of a validation.
    """
    records = _records(run)
    clock = _minutes([record["time"] for record in records])
    found: dict[str, dict[int, tuple[float, float]]] = {}
    bicubic: dict[str, float | None] = {}
    first = RunSettings(run).chosen_on
    unnamed = "validation" if first is None else benchmark_name(first)
    for record, minutes in zip(records, clock, strict=True):
        if record["kind"] == "valid":
            data = record.get("set", unnamed)
            found.setdefault(data, {})[record["step"]] = (minutes, record["psnr_y"])
            bicubic[data] = record.get("bicubic")
    if not found:
        raise UserError(f"{run} has no validation, as without --valid; leave it out")
    last = max(record["step"] for record in records)
    curves = {}
    for data, valid in found.items():
        steps = sorted(valid)
        minutes_at, psnr_y = (list(column) for column in zip(*(valid[step] for step in steps), strict=True))
        curves[data] = Curve(steps, minutes_at, psnr_y, last, clock[-1], bicubic[data])
    return curves


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
                numbers = [key for key in ("psnr_y", "bicubic") if record.get(key) is not None or key == "psnr_y"]
                record |= {key: float(record[key]) for key in numbers}
                record |= {"set": str(record["set"])} if "set" in record else {}
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


def _panels(
    scales: Mapping[str, int | None], curves: Mapping[str, Mapping[str, Curve]], wanted: str | None
) -> list[Panel]:
    """The runs, those together that can be compared."""
    panels: list[Panel] = []
    for run, scale in scales.items():
        beside = [curves[other] for other in scales if scales[other] == scale]
        common = [data for data in beside[0] if all(data in others for others in beside)]
        data = wanted or next(iter(common or curves[run]))
        if data not in curves[run]:
            raise UserError(f"{run} was not validated on {data}, but on {', '.join(curves[run])}; leave it out")
        curve = curves[run][data]
        panel = next((panel for panel in panels if panel.takes(scale, data, curve)), None)
        if panel is None:
            panels.append(panel := Panel(scale, data, {}))
        panel.curves[run] = curve
    return panels


def _print(panel: Panel, settings: Mapping[str, RunSettings]) -> None:
    """One table: figures first, then what the runs are."""
    curves = list(panel.curves.values())
    best = [max(curve.psnr_y) for curve in curves]
    columns = {
        "best\ndB": [f"{value:.3f}" for value in best],
        "at step": [f"{c.steps[c.psnr_y.index(value)]:,}" for c, value in zip(curves, best, strict=True)],
        "last\ndB": [f"{curve.psnr_y[-1]:.3f}" for curve in curves],
        "steps": [f"{curve.last_step:,}" for curve in curves],
    }
    goal = curves[0].psnr_y[-1]
    if len(curves) > 1:
        columns[f"{goal:.3f} dB\nat step"] = [_shown(curve.reaches(goal)) for curve in curves]
    columns["time"] = [duration(60 * curve.duration) for curve in curves]
    about = [settings[run] for run in panel.curves]
    for key in ("network", "parameters", "mode", "teacher"):
        if any(values := [getattr(each, key) for each in about]):
            columns[key] = [_shown(value) for value in values]
    console = plain_console()
    say(console, f"{panel.title}, PSNR-Y")
    print_in_blocks(console, "run", list(panel.curves), columns)
    if len(curves) > 1:
        say(console, f"{goal:.3f} dB is the last figure of {next(iter(panel.curves))}")


def _shown(value: object) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _draw(panels: Sequence[Panel], out: Path) -> None:
    def draw(figure: Any) -> None:
        rows = figure.subplots(len(panels), 2, sharey="row", squeeze=False)
        for panel, (over_steps, over_time) in zip(panels, rows, strict=True):
            _draw_panel(panel, over_steps, over_time)

    save_figure(out, draw, (12, 0.3 + 4.1 * len(panels)), "name another file with --out")


def _draw_panel(panel: Panel, over_steps: Any, over_time: Any) -> None:
    for run, curve in panel.curves.items():
        style: dict[str, Any] = {"linewidth": 1.8, "marker": "o", "markersize": 3 if len(curve.steps) < 40 else 0}
        over_steps.plot(curve.steps, curve.psnr_y, label=run, **style)
        over_time.plot(curve.minutes, curve.psnr_y, **style)
    if panel.bicubic is not None:
        for axes in (over_steps, over_time):
            axes.axhline(panel.bicubic, label="bicubic", color="0.45", linestyle="--", zorder=1)
    over_steps.set_ylim(_limits(panel))
    over_steps.set_title(panel.title, loc="left", fontsize=11)
    over_steps.set_ylabel("PSNR-Y (dB)")
    over_steps.set_xlabel("step")
    over_time.set_xlabel("minutes")
    over_steps.legend(frameon=False)


def _limits(panel: Panel) -> tuple[float, float]:
    """Both ends of the axis: a little beyond bicubic and what training has reached.

    What an untrained network does, at step 0, is many dB below and would press all else into a line.
    """
    curves = panel.curves.values()
    trained = [psnr for c in curves for step, psnr in zip(c.steps, c.psnr_y, strict=True) if step or len(c.steps) == 1]
    highest = [max(curve.psnr_y) for curve in curves]
    shown = [psnr for psnr in (*trained, *highest, panel.bicubic) if psnr is not None and math.isfinite(psnr)]
    low, high = min(shown, default=0.0), max(shown, default=1.0)  # flat images have infinite figures
    margin = 0.05 * max(high - low, 0.1)
    return low - margin, high + margin
