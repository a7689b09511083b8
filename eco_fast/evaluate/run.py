"""`evaluate`: a network, or bicubic, on pairs of images."""

import math
import os
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from eco_fast.errors import UserError
from eco_fast.evaluate.benchmark import Pair
from eco_fast.evaluate.bicubic import bicubic_upsample
from eco_fast.evaluate.inference import device_of, super_resolve
from eco_fast.evaluate.metrics import both, psnr_y

OnImage = Callable[[Pair, NDArray[np.uint8], float, float | None], None]  # pair, SR, PSNR-Y, SSIM-Y

_MAX_WORKERS = 4
_TOGETHER = 128 * 128  # LR pixels of images that go through a network at one time


@dataclass(frozen=True)
class Scores:
    """Figures of one method on one set, image by image."""

    names: list[str]
    psnr: list[float]  # dB; infinite where SR equals HR
    ssim: list[float] | None  # None: not asked for

    @property
    def psnr_y(self) -> float:
        """Mean PSNR-Y over the images; infinite if one of them is."""
        return statistics.fmean(self.psnr) if self.psnr else math.nan

    @property
    def ssim_y(self) -> float | None:
        """Mean SSIM-Y over the images."""
        return statistics.fmean(self.ssim) if self.ssim else None


def evaluate(
    network: nn.Module | None,
    pairs: Sequence[Pair],
    scale: int,
    *,
    ssim: bool = True,
    precision: str = "fp32",
    device: torch.device | str | None = None,
    tile: int | None = None,
    ensemble: bool = False,
    on_image: OnImage | None = None,
) -> Scores:
    """Super-resolve every LR image and compare with HR by the protocol of `metrics`.

    The network runs in evaluation mode and gets its own mode back; random states are not touched. The figures of some
    images are computed at a time, where the network is on a GPU while it works on the next ones.

    Args:
        network: Float (1, 3, h, w) in [0, 1] -> (1, 3, scale h, scale w); None is bicubic upsampling.
        pairs: The images.
        scale: 2, 3 or 4; also the border that is cropped.
        ssim: Compute SSIM too.
        precision: As in `super_resolve`.
        device: As in `super_resolve`.
        tile: As in `super_resolve`.
        ensemble: As in `super_resolve`.
        on_image: Called in the order of the pairs with (pair, SR uint8, PSNR-Y, SSIM-Y or None).

    Raises:
        UserError: The network makes images of another size, or values that are not finite.
    """
    scores = Scores([], [], [] if ssim else None)
    made: list[tuple[Pair, NDArray[np.uint8]]] = []
    waiting: deque[tuple[Pair, NDArray[np.uint8], Future[tuple[float, float | None]]]] = deque()

    def measure() -> None:
        waiting.extend((pair, sr, pool.submit(_measure, sr, pair, scale, ssim)) for pair, sr in made)
        made.clear()

    def finish() -> None:
        pair, sr, future = waiting.popleft()
        psnr, similarity = future.result()
        scores.names.append(pair.name)
        scores.psnr.append(psnr)
        if scores.ssim is not None and similarity is not None:
            scores.ssim.append(similarity)
        if on_image is not None:
            on_image(pair, sr, psnr, similarity)

    workers = min(os.cpu_count() or 1, _MAX_WORKERS)
    # On the CPU a network has all cores in step: a thread that takes one from it holds up the others.
    on_gpu = network is not None and (device_of(network) if device is None else torch.device(device)).type != "cpu"
    # Images whose figures are begun together, and how many may still be under way: both bound the images held.
    images_at_once, backlog = (1, workers) if on_gpu else (2 * workers, 0)
    with ThreadPoolExecutor(workers) as pool:
        for group in _of_one_size(pairs):
            if network is None:
                images = [bicubic_upsample(pair.lr, scale) for pair in group]
            else:
                lr = np.stack([pair.lr for pair in group])
                sr = super_resolve(network, lr, precision=precision, device=device, tile=tile, ensemble=ensemble)
                images = list(sr)
            for pair, sr in zip(group, images, strict=True):
                if sr.shape != pair.hr.shape:
                    raise UserError(
                        f"the network makes {_size(sr)} of {_size(pair.lr)} pixels, which is not x{scale}; "
                        "evaluate it at the scale it was trained for"
                    )
                made.append((pair, sr))
            if len(made) >= images_at_once:
                measure()
                while len(waiting) > backlog:
                    finish()
        measure()
        while waiting:
            finish()
    return scores


def _of_one_size(pairs: Sequence[Pair]) -> Iterator[list[Pair]]:
    """Groups of neighbours whose LR images have one size, as many as are small together; the others stay alone."""
    group: list[Pair] = []
    for pair in pairs:
        full = sum(each.lr[..., 0].size for each in (*group, pair)) > _TOGETHER
        if group and (full or pair.lr.shape != group[0].lr.shape):
            yield group
            group = []
        group.append(pair)
    if group:
        yield group


def _measure(sr: NDArray[np.uint8], pair: Pair, border: int, ssim: bool) -> tuple[float, float | None]:
    if ssim:
        return both(sr, pair.hr, border, grey=pair.grey)
    return psnr_y(sr, pair.hr, border, grey=pair.grey), None


def _size(image: NDArray[np.uint8]) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"
