"""A picture of what is in a store: the first images, small, side by side."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from eco_fast.data.arrays import map_array
from eco_fast.data.store import PreparedStore, hr_kind
from eco_fast.evaluate.pictures import png
from eco_fast.files import write

_TILE, _COLUMNS, _ROWS, _GAP, _TEXT = 160, 6, 5, 8, 16  # pixels, tiles, tiles, pixels, pixels


def save_contact_sheet(store: PreparedStore, file: Path) -> int:
    """Write a PNG of images spread evenly over the store; returns how many it shows.

    Raises:
        UserError: The file cannot be written.
    """
    shown = min(len(store.entries), _COLUMNS * _ROWS)
    chosen = np.linspace(0, len(store.entries) - 1, shown).astype(int)
    columns = min(shown, _COLUMNS)
    rows = -(-shown // columns)
    cell_width, cell_height = _TILE + _GAP, _TILE + _TEXT + _GAP
    sheet = Image.new("RGB", (columns * cell_width + _GAP, rows * cell_height + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for place, i in enumerate(chosen):
        entry = store.entries[i]
        # Rows and columns are dropped before Pillow sees the image: a store may hold very large ones.
        pixels = map_array(store.file(hr_kind(), entry))
        step = max(1, max(pixels.shape[:2]) // (2 * _TILE))
        tile = Image.fromarray(np.ascontiguousarray(pixels[::step, ::step]))
        tile.thumbnail((_TILE, _TILE))
        x, y = _GAP + place % columns * cell_width, _GAP + place // columns * cell_height
        sheet.paste(tile, (x, y))
        name = Path(entry.source).name
        draw.text((x, y + _TILE + 2), name if len(name) <= 24 else f"{name[:21]}...", fill="black")
    write(file, png(sheet), "name another file with --sheet")
    return shown
