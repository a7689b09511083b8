"""Scores for people and for programs: tables on the console, JSON and CSV files."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from eco_fast.commands.tables import print_in_blocks
from eco_fast.console import plain_console, say
from eco_fast.evaluate.metrics import PROTOCOL
from eco_fast.evaluate.run import Scores
from eco_fast.files import write
from eco_fast.units import counted


class SetScores(NamedTuple):
    """A network and bicubic on one set."""

    model: Scores
    bicubic: Scores


class Evaluated(NamedTuple):
    """A network, where it comes from, and its figures."""

    name: str  # in tables: of its run or file
    network: str  # of the architecture, such as edsr-tiny
    scale: int
    parameters: int
    file: Path
    step: int | None  # where the file tells it
    weights: str | None  # "average" or "raw"; None for a file that is no checkpoint's
    scores: dict[str, SetScores]  # by data set

    def origin(self) -> str:
        """One line on it."""
        facts = [f"{self.network} x{self.scale}, {self.parameters:,} parameters"]
        if self.step is not None:
            facts.append(f"step {self.step:,}")
        if self.weights is not None:
            facts.append(self.weights if self.weights == "average" else f"{self.weights} weights")
        return f"{self.name}: {self.file} ({', '.join(facts)})"


def print_scores(
    networks: Sequence[Evaluated],
    *,
    precision: str,
    ensemble: bool = False,
    published: tuple[str, Mapping[str, tuple[float, float]]] | None = None,
    protocol: str = PROTOCOL,
    console: Console | None = None,
) -> None:
    """Print networks of one scale below bicubic, a column per set, under the protocol's name.

    Of several networks the best of every column is marked. Where the sets do not fit the console, tables follow.

    Args:
        networks: One or more, evaluated on the same sets.
        precision: That they were evaluated in.
        ensemble: Whether they were as the mean of eight orientations.
        published: Name and figures of a last row.
        protocol: By which they were measured.
        console: Where it goes.
    """
    several = len(networks) > 1
    columns = {}
    for data, (_, bicubic) in networks[0].scores.items():
        methods = [bicubic, *(network.scores[data].model for network in networks)]
        psnr = _marked([_decibel(scores) for scores in methods], several)
        ssim = _marked([_similarity(scores) for scores in methods], several)
        cells = [f"{a} {b}" for a, b in zip(psnr, ssim, strict=True)]
        if published is not None:
            figures, end = published[1].get(data), " " * several
            cells.append(f"{figures[0]:.2f} {end} {figures[1]:.4f}{end}" if figures else "")
        images = counted(len(bicubic.names), "image")
        columns[f"{data}\n{images}\nPSNR-Y SSIM-Y{' ' * several}"] = cells
    names = ["bicubic", *(network.name for network in networks), *([f"{published[0]}, published"] if published else [])]
    console = console or plain_console()
    title = f"x{networks[0].scale}, {precision}{', mean of 8 orientations' if ensemble else ''}, PSNR in dB"
    say(console, f"{title}\n{protocol}")
    print_in_blocks(console, "", names, columns)
    if several:
        console.print("* best measured")


def document(
    networks: Sequence[Evaluated], *, precision: str, ensemble: bool = False, protocol: str = PROTOCOL
) -> dict[str, Any]:
    """The figures as plain data: `{"format": 2, "protocol", "precision", "ensemble", "networks": [...]}`.

    A network is `{"name", "network", "scale", "parameters", "file", "step", "weights", "data": {set: figures}}`; its
    figures are the number of `images`, `psnr_y`, `ssim_y`, and these two of bicubic under `bicubic`. JSON has no
    infinity: the PSNR of an image that is equal to its original is None. Format 1, without a number, held one network.
    """
    return {
        "format": 2,
        "protocol": protocol,
        "precision": precision,
        "ensemble": ensemble,
        "networks": [
            {
                **{key: value for key, value in network._asdict().items() if key != "scores"},
                "file": str(network.file),
                "data": {
                    name: {"images": len(scores.names), **_means(scores), "bicubic": _means(bicubic)}
                    for name, (scores, bicubic) in network.scores.items()
                },
            }
            for network in networks
        ],
    }


def write_document(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON in one piece: whoever reads `path` sees the old file or the new one.

    Raises:
        UserError: The file cannot be written.
    """
    write(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def write_images(path: Path, networks: Sequence[Evaluated]) -> None:
    """Write CSV with a line per network and image: what both are called, PSNR-Y and SSIM-Y, and those of bicubic.

    Raises:
        UserError: The file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    figures = ("psnr_y", "ssim_y", "bicubic_psnr_y", "bicubic_ssim_y")
    writer.writerow(["name", "network", "scale", "data", "image", *figures])
    for network in networks:
        for data, (scores, bicubic) in network.scores.items():
            values = zip(scores.psnr, scores.ssim or [], bicubic.psnr, bicubic.ssim or [], strict=True)
            for image, row in zip(scores.names, values, strict=True):
                writer.writerow([network.name, network.network, network.scale, data, image, *map(repr, row)])
    write(path, text.getvalue().encode())


def _marked(figures: Sequence[str], mark: bool) -> list[str]:
    """Figures with a mark behind the highest, as they are shown, and room for it behind the others."""
    best = max(figures, key=float)
    return [f"{figure}{'*' if figure == best else ' '}" if mark else figure for figure in figures]


def _means(scores: Scores) -> dict[str, float | None]:
    return {"psnr_y": scores.psnr_y if math.isfinite(scores.psnr_y) else None, "ssim_y": scores.ssim_y}


def _decibel(scores: Scores) -> str:
    return f"{scores.psnr_y:.3f}"


def _similarity(scores: Scores) -> str:
    return "" if scores.ssim_y is None else f"{scores.ssim_y:.4f}"
