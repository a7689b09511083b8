"""Operations on whole images: crop, and the exact 8-bit LR."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from eco_kernels import bicubic_downsample
from eco_kernels.bicubic import REACH

Image = NDArray[np.uint8]  # (H, W, 3) RGB

_BAND = 128  # LR rows


def bicubic_lr(image: Image, scale: int) -> Image:
    """The exact 8-bit LR (MATLAB's bicubic, mirrored border) of a whole image, its sides divisible by the scale.

    Made in bands of rows: memory stays bounded for images of any size, and a band in the cache.
    """
    height, width = image.shape[0] // scale, image.shape[1] // scale
    lr = np.empty((height, width, 3), dtype=np.uint8)
    for start in range(0, height, _BAND):
        stop = min(start + _BAND, height)
        # No tap reaches further than REACH rows: the false borders of a band do not show in its own rows.
        first, last = max(start - REACH, 0), min(stop + REACH, height)
        band = torch.from_numpy(np.require(image[first * scale : last * scale], requirements=["C", "W"]))
        down = bicubic_downsample(band.permute(2, 0, 1)[None], scale, rounding="matlab")[0].permute(1, 2, 0)
        lr[start:stop] = down[start - first : stop - first].numpy()
    return lr


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Images are the parallel unit here: PyTorch's own threads, one team per loader, would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def crop_to_multiple(image: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """Drop the last rows and columns of `(H, W, C)` that do not fill a whole LR pixel; a view."""
    height, width = image.shape[:2]
    return image[: height - height % scale, : width - width % scale]
