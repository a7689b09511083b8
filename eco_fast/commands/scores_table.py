"""Scores for people and for programs: tables on the console, JSON and CSV files."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from eco_fast.console import plain_console
from eco_fast.evaluate.metrics import PROTOCOL
from eco_fast.evaluate.pictures import save_comparison, save_curves
from eco_fast.evaluate.run import Scores
from eco_fast.files import write

__all__ = [
    "Row",
    "SetScores",
    "document",
    "print_rows",
    "print_scores",
    "save_comparison",
    "save_curves",
    "write_document",
    "write_images",
]


class Row(NamedTuple):
    """One method in a table of several."""

    label: str
    scores: Scores
    steps_per_second: float | None = None


class SetScores(NamedTuple):
    """A network and bicubic on one set."""

    model: Scores
    bicubic: Scores


def print_rows(rows: Sequence[Row], *, title: str, console: Console | None = None) -> None:
    """Print methods below each other, under the protocol's name; the gain is over the first row."""
    timed = any(row.steps_per_second is not None for row in rows)
    table = _table("method", "PSNR-Y dB", "gain dB", "SSIM-Y", *(["steps/s"] if timed else []))
    for row in rows:
        gain = _difference(row.scores, rows[0].scores) if row is not rows[0] else ""
        cells = [row.label, _decibel(row.scores), gain, _similarity(row.scores)]
        if timed:
            cells.append("" if row.steps_per_second is None else f"{row.steps_per_second:.1f}")
        table.add_row(*cells)
    _print(title, table, console)


def print_scores(
    results: Mapping[str, SetScores],
    *,
    model: str,
    scale: int,
    precision: str,
    published: Mapping[str, tuple[float, float]] | None = None,
    protocol: str = PROTOCOL,
    console: Console | None = None,
) -> None:
    """Print a network and bicubic, one line per set, under the protocol's name, with `published` figures in columns."""
    header = ("data", "images", "bicubic PSNR-Y", "SSIM-Y", f"{model} PSNR-Y", "SSIM-Y", "gain dB")
    table = _table(*header, *(() if published is None else ("published PSNR-Y", "SSIM-Y")))
    for name, (scores, bicubic) in results.items():
        cells = [_decibel(bicubic), _similarity(bicubic), _decibel(scores), _similarity(scores)]
        cells.append(_difference(scores, bicubic))
        if published is not None:
            psnr, ssim = published.get(name, (None, None))
            cells += ["" if psnr is None else f"{psnr:.2f}", "" if ssim is None else f"{ssim:.4f}"]
        table.add_row(name, str(len(scores.names)), *cells)
    _print(f"{model} x{scale}, {precision}", table, console, protocol)


def document(
    results: Mapping[str, SetScores], *, model: str, scale: int, precision: str, protocol: str = PROTOCOL
) -> dict[str, Any]:
    """The figures as plain data, `{"protocol", "model", "scale", "precision", "data": {set: figures}}`.

    Figures are the number of images, `psnr_y`, `ssim_y`, and the last two of bicubic under `bicubic`. JSON has no
    infinity: the PSNR of an image that is equal to its original is None.
    """
    return {
        "protocol": protocol,
        "model": model,
        "scale": scale,
        "precision": precision,
        "data": {
            name: {"images": len(scores.names), **_means(scores), "bicubic": _means(bicubic)}
            for name, (scores, bicubic) in results.items()
        },
    }


def write_document(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON in one piece: whoever reads `path` sees the old file or the new one.

    Raises:
        UserError: The file cannot be written.
    """
    write(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def write_images(path: Path, results: Mapping[str, SetScores]) -> None:
    """Write CSV with a line per image: its set and name, PSNR-Y and SSIM-Y of the network and of bicubic.

    Raises:
        UserError: The file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["data", "image", "psnr_y", "ssim_y", "bicubic_psnr_y", "bicubic_ssim_y"])
    for name, (scores, bicubic) in results.items():
        columns = [scores.names, scores.psnr, scores.ssim or [], bicubic.psnr, bicubic.ssim or []]
        writer.writerows([name, image, *map(repr, figures)] for image, *figures in zip(*columns, strict=True))
    write(path, text.getvalue().encode())


def _table(first: str, *figures: str) -> Table:
    table = Table()
    table.add_column(first)
    for column in figures:
        table.add_column(column, justify="right")
    return table


def _print(title: str, table: Table, console: Console | None, protocol: str = PROTOCOL) -> None:
    console = console or plain_console()
    # Not the table's own title, which would be folded to the table's width.
    console.print(f"{title}\n{protocol}", soft_wrap=True)
    console.print(table)


def _means(scores: Scores) -> dict[str, float | None]:
    return {"psnr_y": scores.psnr_y if math.isfinite(scores.psnr_y) else None, "ssim_y": scores.ssim_y}


def _decibel(scores: Scores) -> str:
    return f"{scores.psnr_y:.3f}"


def _similarity(scores: Scores) -> str:
    return "" if scores.ssim_y is None else f"{scores.ssim_y:.4f}"


def _difference(scores: Scores, baseline: Scores) -> str:
    gain = scores.psnr_y - baseline.psnr_y
    return "" if math.isnan(gain) else f"{gain:+.3f}"
