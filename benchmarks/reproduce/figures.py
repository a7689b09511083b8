"""What the figures share: the command line, rows with what they were measured on, and curves with their range."""

import io
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.reproduce.lab import Lab, Trial
from benchmarks.rows import environment, write_figures
from eco_fast.commands.compare import Curve
from eco_fast.errors import UserError
from eco_fast.files import write_atomically

RESULTS = Path(__file__).parents[1] / "results" / "reproduce"
COLOURS = {"vanilla": "#5b6b7b", "kd": "#d98a1f", "eco-centroid": "#2a9d6f", "eco": "#c8323c"}
TEACHERS = {"rlfn-s": "teacher RLFN-S", "own": "teacher of the student's architecture"}

Row = dict[str, object]


def command(make: Callable[[Lab, Path], None]) -> None:
    """Run `make(lab, folder of the results)` with the options that all figures have."""

    def main(
        data: Annotated[
            Path,
            typer.Option(
                envvar="ECO_FAST_TESTDATA", help="Folder with train/, Kodak24/HR, Set5 and weights/RLFN/rlfn_s_x2.pth."
            ),
        ] = Path("data"),
        work: Annotated[Path, typer.Option(help="Takes stores and runs.")] = Path("runs/reproduce"),
        out: Annotated[Path, typer.Option(help="Takes CSV and PNG.")] = RESULTS,
        jobs: Annotated[int, typer.Option(help="Runs at a time, one thread each.")] = os.cpu_count() or 1,
    ) -> None:
        try:
            for needed in ("train", "Kodak24/HR", "Set5", "weights/RLFN/rlfn_s_x2.pth"):
                if not (data / needed).exists():
                    raise UserError(f"{data / needed} is missing; name its folder with --data or ECO_FAST_TESTDATA")
            out.mkdir(parents=True, exist_ok=True)
            make(Lab(data, work, jobs), out)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(2) from None

    main.__doc__ = make.__doc__
    typer.run(main)


def write(file: Path, rows: Sequence[Row]) -> None:
    """Write rows as CSV, each with hardware and versions."""
    write_figures(file, [{**row, **environment()} for row in rows])


def curve_rows(curves: Mapping[Trial, Curve]) -> list[Row]:
    """One row per validation; `minutes` is the wall time since the run's first line, beside other runs."""
    return [
        {**trial.columns(), "step": step, "psnr_y": round(psnr, 4), "minutes": round(minutes, 2)}
        for trial, curve in curves.items()
        for step, psnr, minutes in zip(curve.steps, curve.psnr_y, curve.minutes, strict=True)
    ]


def draw_band(axes: Any, curves: Sequence[Curve], label: str, **style: Any) -> None:
    """The mean of some runs over their steps, and their range."""
    steps = curves[0].steps
    values = list(zip(*(curve.psnr_y for curve in curves), strict=True))
    (line,) = axes.plot(steps, [statistics.fmean(each) for each in values], label=label, linewidth=1.8, **style)
    axes.fill_between(
        steps, [min(each) for each in values], [max(each) for each in values], color=line.get_color(), alpha=0.18, lw=0
    )


def save(file: Path, draw: Callable[[Any], None], *, size: tuple[float, float]) -> None:
    """Let `draw` fill a figure of so many inches and write it as PNG."""
    # The object interface: pyplot would touch the caller's backend and keep the figure.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=130, layout="constrained")
    draw(figure)
    for axes in figure.axes:
        axes.grid(color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    write_atomically(file, picture.getvalue())
    print(f"picture: {file}")


def summary(curves: Mapping[str, Sequence[Curve]]) -> None:
    """Print the last figure of some runs: mean and range over their seeds."""
    for label, group in curves.items():
        last = [curve.psnr_y[-1] for curve in group]
        print(f"{label:40} {statistics.fmean(last):.3f} dB ({min(last):.3f} to {max(last):.3f}, {len(last)} seeds)")
