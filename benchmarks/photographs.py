"""Photographs to decode: those of ECO_FAST_TESTDATA, or the ones that ship with scikit-image."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from eco_fast.commands.demo import write_photographs

TILE_HEIGHT, TILE_WIDTH = 339, 510  # of the photographs of ECO_FAST_TESTDATA


def photographs(folder: Path) -> list[Path]:
    """PNG files; those of scikit-image are written below `folder`."""
    data = os.environ.get("ECO_FAST_TESTDATA")
    if data:
        return sorted(Path(data, "train", "DIV2K_0901-1000_quarter").glob("*.png"))
    return sorted(path for made in write_photographs(folder) for path in made.glob("*.png"))


def tiled(paths: list[Path], height: int, width: int) -> np.ndarray:
    """Photographs side by side and below each other until the image is full."""
    image = np.empty((height, width, 3), dtype=np.uint8)
    for k, (top, left) in enumerate((y, x) for y in range(0, height, TILE_HEIGHT) for x in range(0, width, TILE_WIDTH)):
        tile = np.asarray(Image.open(paths[k % len(paths)]).convert("RGB"))[:TILE_HEIGHT, :TILE_WIDTH]
        rows, columns = min(TILE_HEIGHT, height - top), min(TILE_WIDTH, width - left)
        tile = np.tile(tile, (-(-rows // tile.shape[0]), -(-columns // tile.shape[1]), 1))
        image[top : top + rows, left : left + columns] = tile[:rows, :columns]
    return image
