"""Plots in one style, as PNG files."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eco_fast.files import write


def save_figure(
    file: Path, draw: Callable[[Any], None], size: tuple[float, float], hint: str = "name another file"
) -> None:
    """Write what `draw` puts on a figure of matplotlib, `size` in inches, as PNG; the folder is made.

    Raises:
        UserError: The file cannot be written; `hint` says what to do.
    """
    # The object interface: pyplot would touch the caller's backend and keep the figure.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=150, layout="constrained")
    draw(figure)
    for axes in figure.axes:
        axes.grid(color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    write(file, picture.getvalue(), hint)
