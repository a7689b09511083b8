"""The bicubic kernels against the integer and float64 truth, in Triton's interpreter."""

from pathlib import Path

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from PIL import Image
from torch import Tensor

from eco_kernels import bicubic_downsample, reference
from eco_kernels.bicubic import BORDERS, DIVISOR, SCALES, TAPS
from eco_kernels.filter import (
    image_to_8_bit,
    low_byte,
    sum_to_8_bit,
)
from eco_kernels.triton_common import unit

DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)
LAYOUTS = ("nchw", "channels_last", "cut")
# (height, width, batch, channels) in output pixels: one pixel, one tile, rests of tiles, lines of odd length.
SHAPES = ((1, 1, 1, 1), (3, 8, 5, 3), (12, 11, 1, 3), (11, 12, 1, 1), (5, 7, 5, 1))
WIDE = ((17, 24, 1, 1), (24, 17, 1, 3))


def images(shape: tuple[int, int, int, int], scale: int, dtype: torch.dtype, layout: str) -> Tensor:
    """Random images, a third of the values black or white so that the filter overshoots."""
    height, width, batch, channels = shape
    generator = torch.Generator().manual_seed(sum(shape) + scale)
    size = (batch, channels, height * scale, width * scale)
    if dtype == torch.uint8:
        x = torch.randint(-64, 320, size, generator=generator).clamp(0, 255).to(dtype)
    else:
        x = (torch.rand(size, generator=generator) * 1.5 - 0.25).clamp(0, 1).to(dtype)
    if layout == "channels_last":
        return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    if layout == "cut":
        larger = torch.zeros(batch, channels, height * scale + 3, width * scale + 5, dtype=dtype)
        larger[:, :, 1:-2, 2:-3] = x
        return larger[:, :, 1:-2, 2:-3]
    return x


def check(result: Tensor, x: Tensor, scale: int, rounding: str, border: str) -> None:
    expected = reference.bicubic_downsample(x, scale, rounding=rounding, border=border)
    assert result.dtype == x.dtype
    if rounding == "matlab":
        assert torch.equal(result, expected if x.dtype == torch.uint8 else expected.float().to(x.dtype))
    else:
        half_ulp = 0.0 if x.dtype == torch.float32 else torch.finfo(x.dtype).eps / 2
        torch.testing.assert_close(result.double(), expected, rtol=half_ulp, atol=3e-7)


@pytest.mark.grid(scale=SCALES, dtype=DTYPES, layout=LAYOUTS, rounding=("matlab", "none"), border=BORDERS, shape=SHAPES)
def test_small_images(scale, dtype, layout, rounding, border, shape, fences) -> None:
    if dtype == torch.uint8 and rounding == "none":
        dtype = torch.float32
    x = fences.copy(images(shape, scale, dtype, layout))
    result = bicubic_downsample(x, scale, rounding=rounding, border=border)
    check(result, x, scale, rounding, border)
    channels_last = layout == "channels_last"
    assert result.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@pytest.mark.grid(dtype=DTYPES, layout=LAYOUTS, rounding=("matlab", "none"), shape=WIDE)
def test_several_tiles(dtype, layout, rounding, shape, fences) -> None:
    if dtype == torch.uint8 and rounding == "none":
        dtype = torch.bfloat16
    x = fences.copy(images(shape, 2, dtype, layout))
    check(bicubic_downsample(x, 2, rounding=rounding), x, 2, rounding, "symmetric")


def test_lines_that_are_not_dense(fences) -> None:
    x = images((3, 4, 1, 3), 2, torch.uint8, "nchw").transpose(2, 3)
    check(bicubic_downsample(x, 2), x, 2, "matlab", "symmetric")


def test_an_image_too_large_is_refused() -> None:
    x = torch.empty((1, 1, 2**16, 2**15 + 2), dtype=torch.uint8)  # never written: it takes no memory
    with pytest.raises(ValueError, match="2147614720"):
        bicubic_downsample(x, 2)


@pytest.mark.parametrize(
    ("scale", "count"), [(3, 1), (4, 1), *(pytest.param(scale, 5, marks=pytest.mark.full) for scale in SCALES)]
)
def test_published_images(scale, count, testdata) -> None:
    """Set5's smallest images, equal in every value to the LR images that papers report on."""
    hr = {path.stem: read(path) for path in (testdata / "Set5/HR").glob("*.png")}
    assert len(hr) == 5
    for name in sorted(hr, key=lambda name: hr[name].numel())[:count]:
        lr = read(testdata / f"Set5/LR_bicubic/X{scale}/{name}x{scale}.png")
        x = hr[name][:, :, : lr.shape[2] * scale, : lr.shape[3] * scale]
        assert torch.equal(bicubic_downsample(x, scale), lr)


def read(path: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1).unsqueeze(0)


@triton.jit
def _quantise_image_kernel(x, out, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    tl.store(out + place, image_to_8_bit(tl.load(x + place)))


@triton.jit
def _quantise_sum_kernel(x, out, DIVISOR: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    tl.store(out + place, low_byte(sum_to_8_bit(tl.load(x + place), DIVISOR)))


@triton.jit
def _unit_kernel(out):
    place = tl.arange(0, 256)
    tl.store(out + place, unit(place.to(tl.float32)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_value_is_quantised_exactly(dtype) -> None:
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    x = torch.where(x.isnan(), torch.zeros_like(x), x)
    out = torch.empty(len(x))
    _quantise_image_kernel[(1,)](x, out, len(x))
    assert torch.equal(out.double(), reference.to_8_bit(x))
    # The same with one rounding, as a device computes it; float64 holds the sum far more finely than ties are moved.
    fused = x.double().clamp(0, 1) * np.float64(np.float32(255 * (1 + 2.0**-21))) + 2.0**23
    assert torch.equal(fused.float().double() - 2.0**23, reference.to_8_bit(x))


def test_fp32_values_near_ties_are_quantised_exactly() -> None:
    ties = ((torch.arange(256) + 0.5) / 255).view(torch.int32)
    near = (ties.unsqueeze(1) + torch.arange(-16, 16)).flatten().view(torch.float32)
    x = torch.cat((near, torch.rand(2**16, generator=torch.Generator().manual_seed(0)), near - 1, near + 1))
    x = torch.cat((x, x.new_zeros(2**17 - len(x))))
    out = torch.empty(len(x))
    _quantise_image_kernel[(1,)](x, out, len(x))
    assert torch.equal(out.double(), reference.to_8_bit(x))


@pytest.mark.parametrize("kind", [torch.int32, torch.float32])
@pytest.mark.parametrize("scale", SCALES)
def test_every_sum_is_quantised_exactly(scale, kind) -> None:
    divisor = DIVISOR[scale]
    lowest = 255 * sum(tap for tap in TAPS[scale] if tap < 0)
    highest = 255 * sum(tap for tap in TAPS[scale] if tap > 0)
    size = 2**18
    for start in range(lowest, highest + 1, size):
        total = torch.arange(start, start + size)
        out = torch.zeros(size, dtype=torch.uint8)
        _quantise_sum_kernel[(1,)](total.to(kind), out, divisor, size)
        expected = (2 * total + divisor).div(2 * divisor, rounding_mode="floor").clamp(0, 255)
        assert torch.equal(out.long(), expected)
        factor = np.float64(np.float32((1 + 2.0**-21) / divisor))
        fused = (total.clamp(0, 255 * divisor).double() * factor + 2.0**23).float().double() - 2.0**23
        assert torch.equal(fused.long(), expected)


def test_8_bit_over_255_is_rounded_once() -> None:
    out = torch.zeros(256)
    _unit_kernel[(1,)](out)
    assert torch.equal(out, (torch.arange(256, dtype=torch.float64) / 255).float())
