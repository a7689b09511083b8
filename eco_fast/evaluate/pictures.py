"""Pictures: crops side by side, and PSNR curves. Pillow and matplotlib are loaded when one is drawn."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eco_fast.evaluate.metrics import luma, psnr_y
from eco_fast.figure import save_figure
from eco_fast.files import write

_Image = NDArray[np.uint8]  # (H, W, 3)

_PANEL = 300  # pixels a crop is zoomed to, at least
_GAP = 12
_CAPTION = 52
_FONT = 17
_FRAME = (230, 60, 40)
_TEXT, _FAINT, _PAPER = (30, 30, 30), (110, 110, 110), (255, 255, 255)


class Crop(NamedTuple):
    """A window of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, image: _Image) -> _Image:
        """The window of `(H, W, C)`; a view."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]


def save_comparison(
    path: Path,
    panels: Sequence[tuple[str, _Image]],
    *,
    border: int = 4,
    crop: Crop | None = None,
    figures: bool = True,
    grey: bool = False,
) -> Crop:
    """Write a PNG: the whole last image with the crop's frame, then the crop of every panel, zoomed, with its PSNR-Y.

    Pixels are repeated, not interpolated, so that they can be compared. The PSNR-Y is that of the whole image.

    Args:
        path: The PNG; its folder is made.
        panels: Titles and uint8 (H, W, 3) images of one size, in order; the last one is the original.
        border: Pixels cropped for the PSNR: the scale.
        crop: The window; by default the one where the first panel differs most from the last.
        figures: False where the last one is no original: nothing is measured against it.
        grey: As in `psnr_y`.

    Returns:
        The window shown.

    Raises:
        ValueError: Fewer than two panels, or images of different sizes.
        UserError: The file cannot be written.
    """
    from PIL import Image, ImageDraw, ImageFont

    if len(panels) < 2 or len({image.shape for _, image in panels}) > 1:
        raise ValueError("a comparison needs two or more images of one size")
    original = panels[-1][1]
    crop = crop or worst_crop(panels[0][1], original)
    zoom = max(1, math.ceil(_PANEL / crop.height))
    width, height = crop.width * zoom, crop.height * zoom
    overview = _overview(original, crop, height)
    # The crop may be narrow and the caption is not.
    step = max(width, 160) + _GAP
    canvas_size = (2 * _GAP + overview.width + step * len(panels), 2 * _GAP + height + _CAPTION)
    canvas = Image.new("RGB", canvas_size, _PAPER)
    draw = ImageDraw.Draw(canvas)
    title_font, small_font = ImageFont.load_default(_FONT), ImageFont.load_default(_FONT - 3)
    canvas.paste(overview, (_GAP, _GAP))
    text_top = _GAP + height + 6
    draw.text((_GAP, text_top), f"{path.stem}", _TEXT, title_font)
    draw.text((_GAP, text_top + _FONT + 5), f"crop {crop.width} x {crop.height}, zoom {zoom}", _FAINT, small_font)
    for i, (title, image) in enumerate(panels):
        left = 2 * _GAP + overview.width + i * step
        zoomed = np.ascontiguousarray(crop.of(image)).repeat(zoom, axis=0).repeat(zoom, axis=1)
        canvas.paste(Image.fromarray(zoomed), (left, _GAP))
        draw.text((left, text_top), _fitted(title, step - _GAP, title_font), _TEXT, title_font)
        if figures:
            figure = "original" if image is original else f"{psnr_y(image, original, border, grey=grey):.2f} dB"
            draw.text((left, text_top + _FONT + 5), figure, _FAINT, small_font)
    write(path, png(canvas))
    return crop


def _fitted(title: str, width: int, font: Any) -> str:
    """A title, or its end where it is too long for so many pixels."""
    ends = [title, *(f"...{title[cut:]}" for cut in range(4, len(title)))]
    return next((end for end in ends if font.getlength(end) <= width), ends[-1])


def png(image: Any) -> bytes:
    """An image of Pillow as the content of a PNG file."""
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def worst_crop(image: _Image, original: _Image) -> Crop:
    """The window, a quarter of the image in each direction, where the squared luma error is largest."""
    height, width = original.shape[:2]
    tall, wide = max(1, height // 4), max(1, width // 4)
    error = (luma(image) - luma(original)) ** 2
    # A summed-area table gives all window sums at once.
    sums = np.pad(error.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    windows = sums[tall:, wide:] - sums[:-tall, wide:] - sums[tall:, :-wide] + sums[:-tall, :-wide]
    top, left = np.unravel_index(windows.argmax(), windows.shape)
    return Crop(int(top), int(left), tall, wide)


def save_curves(
    path: Path,
    curves: Mapping[str, tuple[Sequence[float], Sequence[Sequence[float]]]],
    baseline: tuple[str, float],
) -> None:
    """Write a PNG of PSNR-Y over steps: the mean of the seeds, and a band from the lowest to the highest.

    Args:
        path: The PNG; its folder is made.
        curves: Label -> (steps, PSNR-Y in dB of each seed at these steps).
        baseline: Label and PSNR-Y of a dashed line: ("bicubic", 33.67). The axis begins a little below it, or
            below where the curves end: what an untrained network does is cut off.

    Raises:
        UserError: The file cannot be written.
    """

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        name, decibels = baseline
        for label, (steps, seeds) in curves.items():
            values = np.array(seeds)
            style = {"linewidth": 1.8, "marker": "o", "markersize": 3 if len(steps) < 40 else 0}
            (line,) = axes.plot(steps, values.mean(axis=0), label=label, **style)
            axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=line.get_color(), alpha=0.15, lw=0)
        axes.axhline(decibels, label=f"{name} ({decibels:.2f} dB)", color="0.45", linestyle="--", zorder=1)
        ends = [float(np.min(seeds, axis=0)[-1]) for _, seeds in curves.values()]
        highest = max([decibels, *(float(np.max(seeds)) for _, seeds in curves.values())])
        lowest = min([decibels, *ends])
        margin = max(0.05 * (highest - lowest), 0.05)
        axes.set_ylim(lowest - 2 * margin, highest + margin)
        axes.set_xlabel("step")
        axes.set_ylabel("PSNR-Y (dB)")
        axes.legend(frameon=False)

    save_figure(path, draw, (7.2, 4.4))


def _overview(image: _Image, crop: Crop, height: int):  # type: ignore[no-untyped-def]  # Pillow is not loaded yet
    """The whole image at a height, with the crop framed."""
    from PIL import Image, ImageDraw

    factor = height / image.shape[0]
    width = max(1, round(image.shape[1] * factor))
    overview = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)
    corners = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
    ImageDraw.Draw(overview).rectangle([round(corner * factor) for corner in corners], outline=_FRAME, width=3)
    return overview
