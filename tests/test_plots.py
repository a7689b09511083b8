"""Plots of benchmark rows: a readable PNG for every form that rows take."""

from pathlib import Path

import pytest
from PIL import Image

from eco_fast.plots import _intensity, plot_figures, plot_kernels, plot_roofline

HARDWARE = {"device": "a device", "threads": "2", "torch": "2", "triton": "3"}


def kernel(operation: str, case: str, contestant: str, ratio: float, cache: str = "warm") -> dict[str, str]:
    figures = {"gb_per_s": str(10 / ratio), "percent_of_copy": str(50 / ratio), "ratio": str(ratio)}
    return {"operation": operation, "case": case, "contestant": contestant, "cache": cache, **figures, **HARDWARE}


KERNELS = [
    kernel(operation, case, contestant, ratio, cache)
    for operation, case in (("gather_patches", "192 px"), ("bicubic_downsample", "x4"), ("eco_l1_with_grad", "float32"))
    for contestant, ratio in (("product", 1.0), ("eager", 3.0))
    for cache in ("warm", "cold")
]
STEPS = [
    {
        "benchmark": "waterfall",
        "case": "edsr-tiny, plain",
        "ms_per_step": "20",
        "ratio": "1",
        "of": "it",
        "hardware": "x",
    },
    {
        "benchmark": "waterfall",
        "case": "edsr-tiny, + bf16",
        "ms_per_step": "9",
        "ratio": "2.2",
        "of": "it",
        "hardware": "x",
    },
    {"benchmark": "data", "case": "packed", "patches_per_second": "9000", "hardware": "x"},
    {"benchmark": "data", "case": "loader", "patches_per_second": "20", "hardware": "x"},
    {"benchmark": "data", "case": "memory of packed", "peak_mb": "900", "hardware": "x"},  # nothing to draw
]


def is_drawn(file: Path) -> bool:
    """A picture of some size that is not all of one colour."""
    with Image.open(file) as image:
        return min(image.size) > 100 and len(image.convert("RGB").getcolors(1 << 24) or []) > 10


def test_kernels(tmp_path: Path) -> None:
    plot_kernels(KERNELS, tmp_path / "kernels.png")
    assert is_drawn(tmp_path / "kernels.png")


@pytest.mark.parametrize("peak", [None, 60.0])
def test_roofline(tmp_path: Path, peak: float | None) -> None:
    plot_roofline(KERNELS, tmp_path / "roofline.png", peak_tflops=peak)
    assert is_drawn(tmp_path / "roofline.png")


def test_figures(tmp_path: Path) -> None:
    plot_figures(STEPS, tmp_path / "step.png")
    assert is_drawn(tmp_path / "step.png")


def test_operations_per_byte() -> None:
    assert _intensity("gather_patches", "192 px") is None  # moves and does not compute
    # x2, per HR value: 20 operations for each of 1/2 + 1/4 values of the passes; 1 + 1/4 bytes.
    assert _intensity("bicubic_downsample", "x2") == pytest.approx(20 * 0.75 / 1.25)
    assert _intensity("bicubic_downsample", "2040 x 1356 x4") == _intensity("bicubic_downsample", "x4")
    assert _intensity("eco_l1_with_grad", "bfloat16") == pytest.approx(11 / 6)
