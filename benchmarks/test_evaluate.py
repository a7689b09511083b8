"""Evaluation and inference: what metrics, files and tiles cost."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from recorded import clock
from rows import Record
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from steps import Steps, in_turns, medians_ms

from eco_fast.data.notes import Notes
from eco_fast.data.pixels import bicubic_lr
from eco_fast.evaluate.benchmark import load_benchmark
from eco_fast.evaluate.inference import super_resolve
from eco_fast.evaluate.metrics import both, luma
from eco_fast.evaluate.run import evaluate
from eco_fast.models import build

SCALE, ROUNDS = 4, 5


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth noise; metrics and networks take the same time for photographs."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 12 + 1, width // 12 + 1, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def once(contestants: Mapping[str, Callable[[], object]]) -> dict[str, Steps]:
    """Functions as contestants of `in_turns`: a step is a call."""
    return {name: lambda count, run=run: [run() for _ in range(count)] and None for name, run in contestants.items()}


@pytest.mark.benchmark(group="metrics", timer=clock)
def test_metrics(record: Record, quick: bool) -> None:
    """PSNR-Y and SSIM-Y of one pair against scikit-image by the same protocol."""
    height, width = (339, 510) if quick else (1356, 2040)
    hr = photo(height, width)
    sr = np.clip(hr.astype(int) + np.random.default_rng(1).integers(-9, 10, hr.shape), 0, 255).astype(np.uint8)

    def by_skimage() -> tuple[float, float]:
        ours, theirs = (luma(image)[SCALE:-SCALE, SCALE:-SCALE] for image in (sr, hr))
        _, similarity = structural_similarity(
            theirs, ours, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
        )
        return peak_signal_noise_ratio(theirs, ours, data_range=255), float(similarity[5:-5, 5:-5].mean())

    np.testing.assert_allclose(both(sr, hr, SCALE), by_skimage(), rtol=1e-6)
    contestants = once({"product": lambda: both(sr, hr, SCALE), "skimage": by_skimage})
    seconds = in_turns(contestants, 1, 1 if quick else ROUNDS)
    ms = medians_ms(seconds)
    record(
        f"PSNR-Y and SSIM-Y, {width} x {height}",
        seconds["product"],
        "scikit-image",
        seconds=round(ms["product"] / 1000, 4),
        skimage_seconds=round(ms["skimage"] / 1000, 4),
        ratio=round(ms["skimage"] / ms["product"], 2),
        of="speed of scikit-image",
        goal="< 0.5 s, ratio >= 5",
    )


@pytest.mark.benchmark(group="evaluation", timer=clock)
def test_overhead_of_evaluation(record: Record, tmp_path: Path, device: torch.device, quick: bool) -> None:
    """What files, LR and metrics add to the time of the network alone."""
    torch.manual_seed(0)
    network = build("edsr-baseline", SCALE).to(device).to(memory_format=torch.channels_last)
    for i in range(2 if quick else 4):
        Image.fromarray(photo(160 if quick else 480, 160 if quick else 640, i)).save(tmp_path / f"{i}.png")
    lrs = [bicubic_lr(np.array(Image.open(path)), SCALE) for path in sorted(tmp_path.iterdir())]
    contestants = {
        "inference": lambda: [super_resolve(network, lr) for lr in lrs],
        "evaluation": lambda: evaluate(network, load_benchmark(tmp_path, SCALE, None, Notes()), SCALE),
    }
    seconds = in_turns(once(contestants), 1, 1 if quick else ROUNDS)
    ms = medians_ms(seconds)
    overhead = ms["evaluation"] / ms["inference"] - 1
    record(
        "evaluation over inference, edsr-baseline",
        seconds["evaluation"],
        seconds=round(ms["evaluation"] / 1000, 3),
        inference_seconds=round(ms["inference"] / 1000, 3),
        goal="<= 5 %",
        overhead_percent=round(100 * overhead, 2),
    )


@pytest.mark.benchmark(group="tiles", timer=clock)
def test_tiles(record: Record, device: torch.device, quick: bool) -> None:
    """How long tiles take, against the whole image where that fits into memory."""
    torch.manual_seed(0)
    network = build("edsr-baseline", SCALE).to(device).to(memory_format=torch.channels_last)
    lr = photo(96, 128) if quick else photo(540, 960)
    sides = (64,) if quick else (480, 270)
    contestants: dict[str, Callable[[], object]] = {"whole": lambda: super_resolve(network, lr)}
    contestants |= {f"tiles of {side}": lambda side=side: super_resolve(network, lr, tile=side) for side in sides}
    seconds = in_turns(once(contestants), 1, 1 if quick else 3)
    ms = medians_ms(seconds)
    for name, value in ms.items():
        record(
            f"edsr-baseline x{SCALE}, {lr.shape[1]} x {lr.shape[0]}, {name}",
            seconds[name],
            seconds=round(value / 1000, 3),
            ratio=round(value / ms["whole"], 3),
            of="time of whole",
            goal="<= 1.1",
        )
