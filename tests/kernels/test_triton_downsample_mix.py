"""The student input's kernels against the integer and float64 truth, in Triton's interpreter."""

import pytest
import torch
from torch import Tensor

from eco_kernels import bicubic_downsample, downsample_mix, reference
from eco_kernels.bicubic import BORDERS, SCALES

DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)
OUTPUTS = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("nchw", "channels_last")
PAIRS = tuple((dtype, torch.uint8) for dtype in DTYPES) + tuple((torch.uint8, dtype) for dtype in DTYPES[1:])
"""Types of centroid and LR."""
# (window height, window width, patch) in LR pixels: a square as it is, a window with context, one at a time wider.
WINDOWS = ((6, 6, None), (9, 8, 5), (12, 7, 7), (5, 8, 3))


def images(size: tuple[int, int, int, int], dtype: torch.dtype, layout: str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.uint8:
        x = torch.randint(-64, 320, size, generator=generator).clamp(0, 255).to(dtype)
    else:
        x = (torch.rand(size, generator=generator) * 1.5 - 0.25).clamp(0, 1).to(dtype)
    return x.contiguous(memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format)


def check(result: Tensor, dtype: torch.dtype, arguments: tuple, options: dict) -> None:
    expected = reference.downsample_mix(*arguments, **options)
    half_ulp = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2
    assert result.dtype == dtype
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result.double(), expected, rtol=half_ulp, atol=3e-7)


@pytest.mark.grid(
    scale=SCALES,
    dtypes=PAIRS,
    layouts=tuple((first, second) for first in LAYOUTS for second in LAYOUTS),
    rounding=("matlab", "none"),
    border=BORDERS,
    window=WINDOWS,
)
def test_patches(scale, dtypes, layouts, rounding, border, window, fences) -> None:
    """Every output type, batch 1 and 5 and 1 or 3 channels take turns: their number follows the case."""
    height, width, patch = window
    turn = SCALES.index(scale) + DTYPES.index(dtypes[0]) + LAYOUTS.index(layouts[0]) + BORDERS.index(border)
    batch, channels, dtype = (5, 1)[turn % 2], (3, 1)[turn // 2 % 2], OUTPUTS[turn % 3]
    generator = torch.Generator().manual_seed(turn)
    centroid = images((batch, channels, height * scale, width * scale), dtypes[0], layouts[0], seed=1)
    lr = images((batch, channels, height, width), dtypes[1], layouts[1], seed=2)
    alpha = torch.rand((batch,) if turn % 3 else (), generator=generator)
    options = {
        "rounding": rounding,
        "border": border,
        "orientation": torch.randint(0, 8, (batch,), generator=generator, dtype=torch.int32),
    }
    if patch is not None:
        top = torch.randint(0, height - patch + 1, (batch,), generator=generator)
        left = torch.randint(0, width - patch + 1, (batch,), generator=generator)
        options |= {"top": top, "left": left, "patch": patch}
    arguments = (fences.copy(centroid), fences.copy(lr), fences.copy(alpha), scale)
    result = downsample_mix(*arguments, **options, dtype=dtype)
    check(result, dtype, arguments, options)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("patched", [False, True])
def test_every_orientation(patched, layout, fences) -> None:
    """Eight samples in one batch, in the four corners of windows and between."""
    size, patch = (9, 5) if patched else (5, 5)
    centroid = fences.copy(images((8, 3, 2 * size, 2 * size), torch.uint8, layout, seed=3))
    lr = fences.copy(images((8, 3, size, size), torch.uint8, layout, seed=4))
    arguments = (centroid, lr, fences.copy(torch.linspace(0, 1, 8)), 2)
    options: dict = {"orientation": torch.arange(8)}
    if patched:
        top, left = torch.tensor([0, 4, 0, 4, 2, 1, 3, 0]), torch.tensor([0, 0, 4, 4, 2, 3, 1, 1])
        options |= {"top": top, "left": left, "patch": patch}
    result = downsample_mix(*arguments, **options)
    check(result, torch.float32, arguments, options)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rounding", ["matlab", "none"])
def test_several_tiles_that_are_not_square(rounding, layout, fences) -> None:
    """Whole windows without orientation, with rests of tiles along both axes."""
    centroid = fences.copy(images((1, 3, 34, 48), torch.bfloat16, layout, seed=5))
    lr = fences.copy(images((1, 3, 17, 24), torch.float32, layout, seed=6))
    arguments = (centroid, lr, torch.tensor(0.3), 2)
    result = downsample_mix(*arguments, rounding=rounding)
    check(result, torch.float32, arguments, {"rounding": rounding})


@pytest.mark.parametrize("kind", [torch.uint8, torch.bfloat16])
@pytest.mark.parametrize("scale", SCALES)
def test_end_points_are_exact(scale, kind, fences) -> None:
    centroid = images((2, 3, 6 * scale, 5 * scale), kind, "channels_last", seed=7)
    lr = images((2, 3, 6, 5), kind, "channels_last", seed=8)
    alpha = torch.tensor([0.0, 1.0])
    result = downsample_mix(centroid, lr, alpha, scale)
    down = bicubic_downsample(reference.to_8_bit(centroid).to(torch.uint8), scale)
    assert torch.equal(result[0], down[0].float() / 255)
    assert torch.equal(result[1], lr[1].float() / 255 if kind == torch.uint8 else lr[1].float())
