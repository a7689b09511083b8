"""Plots of benchmark rows, as `csv.DictReader` reads them. The product is red in all of them, all else grey."""

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eco_fast.figure import save_figure
from eco_fast.measured import Row, Rows, comparison, measured_on, with_unit

OURS, GREY, DARK = "#c8323c", "#98a4b0", "#4a5560"
_WARM = 0.45  # opacity of what was measured with warm caches, where cold ones were too
_BESIDE = {  # a bar's end
    "textcoords": "offset points",
    "xytext": (4, 0),
    "va": "center",
    "fontsize": 7.5,
    "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.5},  # lines of the grid end at the text
}


def plot_kernels(rows: Rows, file: Path) -> None:
    """Bars of every contestant's speed over the product's, a panel per operation, a group of bars per case.

    Args:
        rows: Of `benchmarks/rows.py`, `Row`; with cold and warm caches every contestant has a bar for each.
        file: Takes the PNG.

    Raises:
        UserError: The file cannot be written.
    """
    operations = list(dict.fromkeys(row["operation"] for row in rows))
    panels = {
        name: _grouped([row for row in rows if row["operation"] == name], rows[0]["device"]) for name in operations
    }
    columns = _two_columns({name: len(bars) + 3 for name, bars in panels.items()})

    def draw(figure: Any) -> None:
        parts = figure.subfigures(1, len(columns), squeeze=False)[0]
        for part, column in zip(parts, columns, strict=True):
            heights = [len(panels[name]) + 1 for name in column]
            for axes, name in zip(_stacked(part, heights), column, strict=True):
                _speed_bars(axes, panels[name])
                axes.set_title(name, loc="left", fontsize=10)
        figure.suptitle(_title(rows, "Speed / speed of the product, and median time"), fontsize=9)
        _cache_legend(figure, rows)

    lines = max((sum(len(panels[name]) + 3 for name in column) for column in columns), default=0)
    _save(file, draw if rows else None, (6.8 * max(1, len(columns)), 1.0 + 0.21 * lines))


def plot_roofline(rows: Rows, file: Path, *, peak_tflops: float | None = None) -> None:
    """Arithmetic per second of the product against what memory, and the device's arithmetic, would allow.

    Rows of the first row's device only: each has its own roof. What computes nothing, `gather_patches`, is left out.

    Args:
        rows: As of `plot_kernels`; cold caches where those were measured.
        file: Takes the PNG.
        peak_tflops: fp32 arithmetic of the device in 10^12 operations/s, where it is known.

    Raises:
        UserError: The file cannot be written.
    """
    cache = "cold" if any(row["cache"] == "cold" for row in rows) else "warm"
    points = [
        Point(f"{row['operation']} {row['case']}", intensity, intensity * float(row["gb_per_s"]))
        for row in rows
        if row["contestant"] == "product" and row["cache"] == cache and row["device"] == rows[0]["device"]
        if (intensity := operations_per_byte(row["operation"], row["case"])) is not None
    ]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        copy = 100 * float(rows[0]["gb_per_s"]) / float(rows[0]["percent_of_copy"])  # measured in the same run
        _roofs(axes, points, copy, peak_tflops)
        label = f"product, median with {cache} caches"
        axes.plot([p.x for p in points], [p.y for p in points], "o", color=OURS, markersize=5, label=label, zorder=3)
        axes.set(xscale="log", yscale="log", xlabel="operations per byte that must move", ylabel="10^9 operations / s")
        _label_beside(axes, points)
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.13))
        axes.set_title(_title(rows[:1]), fontsize=9)

    _save(file, draw if points else None, (9, 6))


def plot_figures(rows: Rows, file: Path) -> None:
    """Bars of the rows of any other suite: a panel per benchmark, network and unit. Rows without a speed are left out.

    Args:
        rows: With the columns `benchmark`, `case`, `hardware` and one or more of `_UNITS`.
        file: Takes the PNG.

    Raises:
        UserError: The file cannot be written.
    """
    panels: dict[tuple[str, str], list[Bar]] = {}
    for row in rows:
        for column in _UNITS:
            if row.get(column):
                title, name = _title_and_name(row, column)
                panels.setdefault((title, column), []).extend(_bars(row, column, name))

    def draw(figure: Any) -> None:
        for axes, ((title, column), bars) in zip(
            _stacked(figure, [len(bars) + 1 for bars in panels.values()]), panels.items(), strict=True
        ):
            least, most = min(bar.value for bar in bars), max(bar.value for bar in bars)
            log = least > 0 and (column == "patches_per_second" or most > 50 * least)
            _draw_bars(axes, bars, range(len(bars)), log=log)
            axes.set_title(title, loc="left", fontsize=10)
            axes.set_xlabel(_UNITS[column].label, fontsize=9)
        figure.suptitle(_title(rows), fontsize=9)

    _save(file, draw if panels else None, (10, 0.8 + 0.3 * sum(len(bars) + 3 for bars in panels.values())))


def can_draw(rows: Rows) -> bool:
    """Whether `plot_figures` finds a speed in the rows."""
    return any(row.get(column) for row in rows for column in _UNITS)


class Point(NamedTuple):
    """One operation on the roofline."""

    name: str
    x: float  # operations per byte
    y: float  # 10^9 operations per second


class Bar(NamedTuple):
    """One line of a panel."""

    name: str
    value: float
    note: str
    ours: bool
    warm: bool = False  # next to a bar of cold caches


class Unit(NamedTuple):
    """What a column holds, and the column of the same row with the figure of something that is not ours."""

    label: str
    other: str = ""
    others_name: str = ""


_UNITS = {
    "ms_per_step": Unit("milliseconds per step", "plain_ms", "plain PyTorch"),
    "patches_per_second": Unit("patches per second"),
    "wait_ms": Unit("milliseconds that a step waits for data"),
    "ms_per_image": Unit("milliseconds per image"),
    "seconds": Unit("seconds", "skimage_seconds", "scikit-image"),
    "percent_of_copy": Unit("% of the bandwidth of a copy"),
}
_NOT_OURS = (
    "bare",
    "plain",
    "tuned plain",
    "usual",
    "NCHW",
    "loader",
    "whole",
    "teacher alone",
)  # beginnings of a part of a case's name

# The arithmetic of the operations, per value that they make. A product and a sum are two operations; conversions,
# rounding and clamps are not counted. The filter runs down the columns first, which leaves `scale` values for every
# one that it makes along the rows. A cut window counts as if it were all used: 3 % too little at most.
_TAPS = {2: 8, 3: 11, 4: 16}
_BLEND = 3  # alpha a + (1 - alpha) b
_LOSS = 6  # difference, absolute value, sum; sign (two), scale


def operations_per_byte(operation: str, case: str) -> float | None:
    """Arithmetic over the bytes that must move, each input and each output once; None where nothing is computed.

    Args:
        operation: As the rows have it.
        case: Names the scale, `x2`, or of the loss the type of the network's output.
    """
    if operation == "gather_mix":
        return _BLEND / (1 + 1 + 4)  # two 8-bit values in, an fp32 one out
    if operation == "eco_loss_with_grad":
        size = 2 if case == "bfloat16" else 4  # of the network's output, and of its gradient
        return (_BLEND + _LOSS) / (1 + 1 + 2 * size)
    found = re.search(r"\bx([234])\b", case)
    if found is None or operation not in ("bicubic_downsample", "downsample_mix"):
        return None
    scale = int(found[1])
    filtered = 2 * _TAPS[scale] * (scale + 1)
    if operation == "bicubic_downsample":
        return filtered / (scale**2 + 1)
    return (filtered + _BLEND) / (scale**2 + 1 + 4)  # HR and LR in 8 bit, the blend in fp32


def _grouped(rows: Rows, first_device: str) -> list[Bar | None]:
    """The bars of an operation, case by case, None between two of them."""
    bars: list[Bar | None] = []
    for device, case in dict.fromkeys((row["device"], row["case"]) for row in rows):
        mine = [row for row in rows if (row["device"], row["case"]) == (device, case)]
        contestants = list(dict.fromkeys(row["contestant"] for row in mine))
        both = len({row["cache"] for row in mine}) > 1
        place = case if device == first_device else f"{case} on {device}"
        for row in sorted(mine, key=lambda row: contestants.index(row["contestant"])):
            head = f"{place}   " if row is mine[0] else ""
            warm = both and row["cache"] == "warm"
            speed = 1 / float(row["ratio"])
            note = f"{speed:.2f}   {with_unit('p50_us', float(row['p50_us']))}"
            bars.append(
                Bar("" if warm else head + row["contestant"], speed, note, row["contestant"] == "product", warm)
            )
        bars.append(None)
    return bars[:-1]


def _speed_bars(axes: Any, bars: Sequence[Bar | None]) -> None:
    filled = [(place, bar) for place, bar in enumerate(bars) if bar is not None]
    _draw_bars(axes, [bar for _, bar in filled], [place for place, _ in filled], log=False)
    axes.axvline(1, color=OURS, linewidth=0.8, zorder=0)


def _draw_bars(axes: Any, bars: Sequence[Bar], places: Sequence[int], *, log: bool) -> None:
    """Horizontal bars from above to below, their notes at the ends."""
    values = [bar.value for bar in bars]
    for place, bar in zip(places, bars, strict=True):
        colour = OURS if bar.ours else GREY
        axes.barh(place, bar.value, height=0.8, color=colour, alpha=_WARM if bar.warm else 1.0)
        axes.annotate(bar.note, (bar.value, place), **_BESIDE)
    named = [(place, bar.name) for place, bar in zip(places, bars, strict=True) if bar.name]
    axes.set_yticks([place for place, _ in named], [name for _, name in named], fontsize=8.5)
    axes.set_ylim(max(places) + 0.7, min(places) - 0.7)
    axes.tick_params(axis="y", length=0)
    if log:
        axes.set_xscale("log")
        axes.set_xlim(min(values) / 2, max(values) * (max(values) / min(values) * 2) ** 0.4)  # room for the notes
    else:
        axes.set_xlim(0, max(values) * 1.5 or 1.0)


def _title_and_name(row: Row, column: str) -> tuple[str, str]:
    """Titles of the panel and of the bar that a row goes to: training steps have a panel for each network."""
    network, comma, rest = row["case"].partition(", ")
    if column == "ms_per_step" and comma:
        return f"{row['benchmark']}, {network}", rest
    return row["benchmark"], row["case"]


def _bars(row: Row, column: str, name: str) -> list[Bar]:
    """The bar of a row, after that of what it was compared with where the row has that too."""
    unit = _UNITS[column]
    ours = not any(part.startswith(_NOT_OURS) for part in name.split(", "))
    other = row.get(unit.other, "")
    before = [_bar(f"{name}: {unit.others_name}", unit.other, other, "", ours=False)] if other else []
    return [*before, _bar(name, column, row[column], comparison(row), ours=ours)]


def _bar(name: str, column: str, value: str, said: str, *, ours: bool) -> Bar:
    return Bar(name, float(value), f"{with_unit(column, float(value))}   {said}".rstrip(), ours)


def _roofs(axes: Any, points: Sequence[Point], copy: float, peak_tflops: float | None) -> None:
    """The line that memory allows, in GB/s, bent where arithmetic ends."""
    left, right = min(p.x for p in points) / 2, max(p.x for p in points) * 2
    label = f"memory: a copy, measured in the same run, {copy:,.0f} GB/s"
    if peak_tflops is None:
        axes.plot([left, right], [copy * left, copy * right], color=DARK, label=label)
        return
    ridge = max(1e3 * peak_tflops / copy, left)
    axes.plot([left, ridge], [copy * left, copy * ridge], color=DARK, label=label)
    given = f"arithmetic: fp32 as given, {peak_tflops:g} TFLOP/s"
    axes.plot([ridge, max(right, 2 * ridge)], 2 * [1e3 * peak_tflops], color=DARK, linestyle="--", label=given)


def _label_beside(axes: Any, points: Sequence[Point]) -> None:
    """Names in a column at the right, each with a line to its point: next to the points they would overlap."""
    axes.autoscale_view()
    scaled = (axes.transScale + axes.transLimits).transform([(point.x, point.y) for point in points])
    left = [(point, x, y) for point, (x, y) in zip(points, scaled, strict=True)]
    line = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "relpos": (0, 0.5), "shrinkA": 0}
    style = {"textcoords": "axes fraction", "va": "center", "fontsize": 8, "arrowprops": line}
    column = 1.06
    for number in range(len(points)):
        height = 1 - (number + 0.5) / len(points)
        # From above to below, each name takes the point whose line passes over all that are left: no two lines cross.
        best = min(left, key=lambda each: (height - each[2]) / (column - each[1]))
        left.remove(best)
        axes.annotate(best[0].name, (best[0].x, best[0].y), xytext=(column, height), **style)


def _two_columns(lines: Mapping[str, int]) -> list[list[str]]:
    """Names in their order, in two columns of about the same number of lines."""
    names = list(lines)
    halves = [(names[:i], names[i:]) for i in range(1, len(names))]
    if not halves:
        return [names] if names else []
    return list(min(halves, key=lambda half: max(sum(lines[name] for name in part) for part in half)))


def _cache_legend(figure: Any, rows: Rows) -> None:
    if len({row["cache"] for row in rows}) > 1:
        from matplotlib.patches import Patch

        patches = [Patch(color=DARK, label="cold caches"), Patch(color=DARK, alpha=_WARM, label="warm caches")]
        figure.legend(handles=patches, loc="outside lower center", ncols=2, frameon=False, fontsize=8)


def _title(rows: Rows, *lines: str) -> str:
    """Lines, then what rows were measured on, in lines that fit the narrowest of these plots."""
    return "\n".join([*lines, *textwrap.wrap(measured_on(rows), 90)])


def _stacked(figure: Any, heights: Sequence[int]) -> Sequence[Any]:
    return figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]


def _save(file: Path, draw: Callable[[Any], None] | None, size: tuple[float, float]) -> None:
    """Write what `draw` puts on a figure; None where there is nothing to draw, which it then says."""
    save_figure(file, draw or _nothing_to_draw, size)


def _nothing_to_draw(figure: Any) -> None:
    figure.text(0.5, 0.5, "no row with a figure to draw", ha="center")
