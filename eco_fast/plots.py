"""Plots of benchmark rows, as `csv.DictReader` reads them."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eco_fast.files import write_atomically

Rows = Sequence[Mapping[str, str]]

OURS, GREY = "#c8323c", "#98a4b0"
OTHERS = ("#22577a", "#38a3a5", "#d98a1f", "#7a4fb5", "#80b918", "#8d6e63", "#5b6b7b", "#e29cb0")
_MARKERS = {"x2": "o", "x3": "s", "x4": "^"}
_NOT_OURS = ("bare", "plain", "fp32, NCHW", "loader", "whole", "inference", "teacher alone")
_TAPS = {2: 8, 3: 11, 4: 16}  # of the bicubic filter, per pass
_SPEEDS = {  # column of a figure -> what its bars say
    "ms_per_step": "milliseconds per step",
    "patches_per_second": "patches per second",
    "ms_per_image": "milliseconds per image",
    "seconds": "seconds",
}


def plot_kernels(rows: Rows, file: Path) -> None:
    """How many times as long as the product every contestant takes; with cold caches where those were measured."""
    chosen = _of_one_cache(rows)
    cases = list(dict.fromkeys((row["operation"], row["case"]) for row in chosen))
    names = list(dict.fromkeys(row["contestant"] for row in chosen))

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for name, colour in zip(names, (OURS, *OTHERS), strict=False):
            mine = [row for row in chosen if row["contestant"] == name]
            places = [cases.index((row["operation"], row["case"])) for row in mine]
            style = {"marker": "|" if name == "product" else "o", "markersize": 14 if name == "product" else 7}
            axes.plot([float(row["ratio"]) for row in mine], places, color=colour, label=name, linestyle="", **style)
        axes.set_yticks(range(len(cases)), [f"{operation}  {case}" for operation, case in cases])
        axes.invert_yaxis()
        axes.axvline(1, color=OURS, linewidth=0.8, zorder=0)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("time / time of the product: right of the line is slower")
        axes.set_title(_hardware(chosen[0]), fontsize=9)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))

    _save(file, draw, (10, 1.2 + 0.27 * len(cases)))


def plot_roofline(rows: Rows, file: Path, *, peak_tflops: float | None = None) -> None:
    """The product's arithmetic against what memory, and the device's arithmetic, would allow.

    Args:
        rows: As of `plot_kernels`.
        file: Takes the PNG.
        peak_tflops: fp32 arithmetic of the device, where it is known.
    """
    found = [(_intensity(row["operation"], row["case"]), row) for row in _of_one_cache(rows)]
    points = [(x, row) for x, row in found if x is not None and row["contestant"] == "product"]
    first = points[0][1]
    copy = 100 * float(first["gb_per_s"]) / float(first["percent_of_copy"])  # measured in the same run
    colours = dict(zip(dict.fromkeys(row["operation"] for _, row in points), OTHERS, strict=False))

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        reach = [min(x for x, _ in points) / 2, max(x for x, _ in points) * 3]
        axes.plot(reach, [copy * x for x in reach], color="0.3", label=f"copy, measured: {copy:.0f} GB/s")
        if peak_tflops is not None:
            axes.axhline(1e3 * peak_tflops, color="0.3", linestyle="--", label=f"data sheet: {peak_tflops:g} TFLOP/s")
        seen: set[str] = set()
        for x, row in points:
            scale = next((each for each in _MARKERS if each in row["case"]), row["case"])
            label = f"{row['operation']} {scale}"
            style = {"marker": _MARKERS.get(scale, "D"), "color": colours[row["operation"]], "linestyle": ""}
            axes.plot(x, x * float(row["gb_per_s"]), label=None if label in seen else label, **style)
            seen.add(label)
        axes.set(xscale="log", yscale="log", xlabel="operations per byte that must move", ylabel="10^9 operations/s")
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        axes.set_title(_hardware(first), fontsize=9)

    _save(file, draw, (9, 4.5))


def plot_figures(rows: Rows, file: Path) -> None:
    """Bars of the rows of a suite: times or rates, a panel per benchmark, network and unit."""
    panels: dict[tuple[str, str], list[tuple[str, Mapping[str, str]]]] = {}
    for row in rows:
        column = next((key for key in _SPEEDS if row.get(key)), None)
        if column is not None:
            network, comma, rest = row["case"].partition(", ")
            split = bool(comma) and column == "ms_per_step"
            title = f"{row['benchmark']}, {network}" if split else row["benchmark"]
            panels.setdefault((title, column), []).append((rest if split else row["case"], row))

    def draw(figure: Any) -> None:
        heights = [len(group) + 1.2 for group in panels.values()]
        grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, ((title, column), group) in zip(grid, panels.items(), strict=True):
            _bars(axes, column, group)
            axes.set_title(title, loc="left", fontsize=10)
        figure.suptitle(rows[0].get("hardware", ""), fontsize=9)

    _save(file, draw, (10, 0.8 + 0.32 * sum(len(group) + 2.6 for group in panels.values())))


def _bars(axes: Any, column: str, group: Sequence[tuple[str, Mapping[str, str]]]) -> None:
    values = [float(row[column]) for _, row in group]
    axes.barh(range(len(group)), values, color=[GREY if name.startswith(_NOT_OURS) else OURS for name, _ in group])
    axes.set_yticks(range(len(group)), [name for name, _ in group])
    for place, (value, (_, row)) in enumerate(zip(values, group, strict=True)):
        of = f" x {row['of']}" if row.get("of") else ""
        ratio = f"   ratio {float(row['ratio']):.3g}{of}" if row.get("ratio") else ""
        text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        style = {"textcoords": "offset points", "xytext": (4, 0), "va": "center", "fontsize": 7}
        axes.annotate(text + ratio, (value, place), **style)
    axes.invert_yaxis()
    axes.margins(x=0.35)
    if max(values) > 50 * min(values):
        axes.set_xscale("log")
    axes.set_xlabel(_SPEEDS[column])


def _of_one_cache(rows: Rows) -> list[Mapping[str, str]]:
    state = "cold" if any(row["cache"] == "cold" for row in rows) else "warm"
    return [row for row in rows if row["cache"] == state]


def _intensity(operation: str, case: str) -> float | None:
    """Operations per byte that has to be moved; None where nothing is computed.

    A product and a sum count as two, the rounding and clamp of a pass as four, a blend as three, the loss with its
    slope as eight per value. Filters run in two passes: HR / s values, then HR / s^2.
    """
    if operation == "gather_mix":
        return 3 / 6  # two bytes in, four out
    if operation == "eco_l1_with_grad":
        return (3 + 8) / (6 if case == "bfloat16" else 10)
    found = re.search(r"x(\d)", case)
    if found is None:
        return None
    scale = int(found[1])
    passes = (2 * _TAPS[scale] + 4) * (1 / scale + 1 / scale**2)
    if operation == "bicubic_downsample":
        return passes / (1 + 1 / scale**2)
    return (passes + 3 / scale**2) / (1 + 5 / scale**2)


def _hardware(row: Mapping[str, str]) -> str:
    return f"{row['device']}, PyTorch {row['torch']}, Triton {row['triton']}"


def _save(file: Path, draw: Callable[[Any], None], size: tuple[float, float]) -> None:
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
