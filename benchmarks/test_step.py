"""One training step of `edsr-tiny` (x2, LR patch 24, batch 16) against the same step in plain PyTorch.

Both train on the same images in alternating blocks, so that a drift of the machine falls on both.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from plain import PlainTrainer

from eco_fast.config import parse_config
from eco_fast.data.sampler import Sampler
from eco_fast.data.store import FlatImages, TrainingSet, bicubic_lr
from eco_fast.eco.objective import blend
from eco_fast.models import build
from eco_fast.train.environment import configure, resolve
from eco_fast.train.step import StudentStep, make_batch

SCALE, PATCH, BATCH, LR = 2, 24, 16, 1e-3
BLOCKS, BLOCK_STEPS = 10, 20  # interleaved blocks of each, steps per block

Four = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _images(count: int = 32) -> list[Four]:
    """(hr, lr, centroid, centroid_lr) of smooth random images; a step costs the same for photographs."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (54, 80, 3), dtype=np.uint8))
        hr = np.array(coarse.resize((480, 320), Image.Resampling.BICUBIC))
        centroid = np.array(coarse.resize((480, 320), Image.Resampling.BILINEAR))
        images.append((hr, bicubic_lr(hr, SCALE), centroid, bicubic_lr(centroid, SCALE)))
    return images


def _product_step(images: list[Four], precision: str) -> Callable[[int, float], None]:
    document = {
        "scale": SCALE,
        "student": {"name": "edsr-tiny"},
        "data": {"patch": PATCH, "batch": BATCH},
        "optim": {"lr": LR},
        "run": {"precision": precision, "device": "cpu"},
    }
    config = resolve(parse_config(document, "benchmark"))
    configure(config.run)
    hr, lr, centroid, centroid_lr = (FlatImages.from_arrays(list(kind)) for kind in zip(*images, strict=True))
    names = [str(i) for i in range(len(images))]
    training_set = TrainingSet(names, hr, lr, SCALE, centroid, centroid_lr)
    sampler = Sampler(lr.heights, lr.widths, SCALE, PATCH, BATCH, seed=0)
    state = StudentStep(build("edsr-tiny", SCALE).to(memory_format=torch.channels_last), config)

    def step(number: int, alpha: float) -> None:
        plan = sampler.plan(number)
        state(number, make_batch(training_set, plan, PATCH, blend("eco", alpha, plan.uniform)))[0].item()

    return step


@pytest.mark.benchmark(group="step edsr-tiny x2")
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_step_against_plain_pytorch(benchmark, precision: str) -> None:
    images = _images()
    plain = PlainTrainer(images, SCALE, patch=PATCH, batch=BATCH, lr=LR, bf16=precision == "bf16")
    product = _product_step(images, precision)
    seconds: dict[str, list[float]] = {"product": [], "plain": []}
    for block in range(BLOCKS + 1):
        for name, run in (("product", product), ("plain", lambda _, alpha: plain.step(alpha))):
            started = time.perf_counter()
            for i in range(BLOCK_STEPS):
                run(block * BLOCK_STEPS + i, 0.5)
            if block:  # the first one warms up
                seconds[name].append((time.perf_counter() - started) / BLOCK_STEPS)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    benchmark.extra_info.update(
        {f"{name}_ms": round(1000 * value, 2) for name, value in median.items()},
        ratio=round(median["plain"] / median["product"], 3),
        threads=torch.get_num_threads(),
        torch=str(torch.__version__),
    )
    print(benchmark.extra_info)
    benchmark.pedantic(lambda: product(0, 0.5), rounds=20, warmup_rounds=2)
