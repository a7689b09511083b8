"""The 8-bit bicubic against the published LR images, against MATLAB's definition, and the fast form against both."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from eco_kernels import bicubic_downsample, reference
from eco_kernels.bicubic import BORDERS, DIVISOR, FIRST_TAP, SCALES, TAPS

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
# Tiny images mirror more than once; 21 and 13 outputs end in a narrow band, 16 and 32 fill whole ones.
LR_SIZES = ((1, 1), (2, 3), (21, 16), (13, 50))


def images(lr_size: tuple[int, int], scale: int, seed: int = 0, batch: int = 2, channels: int = 3) -> Tensor:
    """Random 8-bit images with half of the values saturated, so that filters overshoot."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, channels, lr_size[0] * scale, lr_size[1] * scale)
    return torch.randint(-128, 384, shape, generator=generator).clamp(0, 255).to(torch.uint8)


def half_ulp(dtype: torch.dtype) -> float:
    """Half the spacing of `dtype` just below 2, where overshooting images can reach."""
    return 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ["baby", "bird", "butterfly", "head", "woman"])
def test_published_images(testdata: Path, name: str, scale: int) -> None:
    hr = np.array(Image.open(testdata / "Set5" / "HR" / f"{name}.png").convert("RGB"))
    lr = np.array(Image.open(testdata / "Set5" / "LR_bicubic" / f"X{scale}" / f"{name}x{scale}.png").convert("RGB"))
    x = torch.from_numpy(hr[: lr.shape[0] * scale, : lr.shape[1] * scale]).permute(2, 0, 1).unsqueeze(0)
    expected = torch.from_numpy(lr).permute(2, 0, 1).unsqueeze(0)
    assert torch.equal(bicubic_downsample(x, scale), expected)
    assert torch.equal(bicubic_downsample(x.contiguous(), scale), expected)
    assert torch.equal(reference.imresize(x, 1 / scale), expected)


@pytest.mark.parametrize("scale", SCALES)
def test_taps(scale: int) -> None:
    """The integer taps are the antialiased cubic kernel at the pixel centres."""
    taps = torch.tensor(TAPS[scale], dtype=torch.float64) / DIVISOR[scale]
    centre = (scale - 1) / 2
    kernel = reference.cubic((FIRST_TAP[scale] + torch.arange(len(taps)) - centre).double() / scale)
    assert DIVISOR[scale] == {2: 256, 3: 81, 4: 4096}[scale]
    torch.testing.assert_close(taps, kernel / kernel.sum(), rtol=0, atol=1e-15)
    assert 255 * sum(map(abs, TAPS[scale])) < 2**24


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("scale", SCALES)
def test_reference_follows_the_definition(scale: int, border: str) -> None:
    for lr_size in LR_SIZES:
        x = images(lr_size, scale)
        expected = reference.imresize(x, 1 / scale, border=border)
        assert torch.equal(reference.bicubic_downsample(x, scale, border=border), expected)
        unrounded = reference.bicubic_downsample(x.float() / 255, scale, rounding="none", border=border)
        wanted = reference.imresize(x.float() / 255, 1 / scale, border=border)
        torch.testing.assert_close(unrounded, wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("scale", SCALES)
def test_uint8_is_exact(scale: int, border: str, layout: str) -> None:
    for lr_size in LR_SIZES:
        x = images(lr_size, scale).contiguous(memory_format=LAYOUTS[layout])
        result = bicubic_downsample(x, scale, border=border)
        assert result.dtype == torch.uint8
        assert torch.equal(result, reference.bicubic_downsample(x, scale, border=border))
        assert result.is_contiguous(memory_format=LAYOUTS[layout])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scale", SCALES)
def test_float(scale: int, dtype: torch.dtype, layout: str) -> None:
    x = (torch.rand(2, 3, 20 * scale, 9 * scale, generator=torch.Generator().manual_seed(1)) * 1.2 - 0.1).to(dtype)
    x = x.contiguous(memory_format=LAYOUTS[layout])
    for border in BORDERS:
        rounded = bicubic_downsample(x, scale, border=border)
        expected = reference.bicubic_downsample(x, scale, border=border)
        assert torch.equal(rounded, expected.float().to(dtype))
        plain = bicubic_downsample(x, scale, rounding="none", border=border)
        expected = reference.bicubic_downsample(x, scale, rounding="none", border=border)
        torch.testing.assert_close(plain.double(), expected, rtol=0, atol=5e-7 + half_ulp(dtype))
        for result in (rounded, plain):
            assert result.dtype == dtype
            assert result.is_contiguous(memory_format=LAYOUTS[layout])


@pytest.mark.parametrize("dtype", FLOATS)
def test_float_input_rounds_half_up(dtype: torch.dtype) -> None:
    """Every float16 and bfloat16 value in range, and the fp32 neighbours of each tie."""
    if dtype == torch.float32:
        ties = (torch.arange(256, dtype=torch.float64) + 0.5).div(255).float()
        x = torch.cat([ties, torch.nextafter(ties, torch.tensor(0.0)), torch.nextafter(ties, torch.tensor(2.0))])
    else:
        x = torch.arange(2**15, dtype=torch.int16).view(dtype)
        x = x[x.isfinite() & (x <= 1)]
    # Constant 2 x 2 blocks, each its own image, come out as their own value.
    blocks = x.view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    result = bicubic_downsample(blocks, 2).flatten()
    assert torch.equal(result, (reference.to_8_bit(x).float() / 255).to(dtype))


def test_tie_below_one_half() -> None:
    """0.49999997 / 255: its product with 255 is just below a half, and adding 0.5 to it in fp32 gives 1."""
    x = torch.tensor((0.5 - 2.0**-25) / 255)
    assert x * 255 < 0.5
    assert bicubic_downsample(x.expand(1, 1, 2, 2), 2).item() == 0


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_channels_and_slices(channels: int) -> None:
    """Any channel count, and windows of larger images in both layouts, without a wrong stride."""
    x = images((12, 12), 2, channels=channels)
    for layout in LAYOUTS.values():
        window = x.contiguous(memory_format=layout)[:, :, 4:20, 2:12]
        assert torch.equal(bicubic_downsample(window, 2), reference.bicubic_downsample(window, 2))


@pytest.mark.parametrize("scale", SCALES)
def test_properties(scale: int) -> None:
    x = images((11, 18), scale)
    down = bicubic_downsample(x, scale)
    assert torch.equal(bicubic_downsample(x.flip(3), scale), down.flip(3))
    assert torch.equal(bicubic_downsample(x.flip(2), scale), down.flip(2))
    assert not torch.equal(bicubic_downsample(x.mT, scale), down.mT)
    for value in (0, 1, 127, 255):
        assert (bicubic_downsample(torch.full_like(x, value), scale) == value).all()


@pytest.mark.parametrize("border", BORDERS)
def test_window_inside_is_exact(border: str) -> None:
    """Two LR pixels of context are enough for a patch inside an image."""
    x = images((30, 30), 3)
    whole = bicubic_downsample(x, 3, border=border)
    window = bicubic_downsample(x[:, :, 3 * 6 : 3 * 20, 3 * 8 : 3 * 22], 3, border=border)
    assert torch.equal(window[:, :, 2:-2, 2:-2], whole[:, :, 8:18, 10:20])


def test_exact_whatever_the_matmul_precision() -> None:
    """Autocast and reduced fp32 matrix products must not reach the filter."""
    x = images((40, 40), 4)
    expected = reference.bicubic_downsample(x, 4)
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("high", "medium"):
            torch.set_float32_matmul_precision(precision)
            assert torch.equal(bicubic_downsample(x, 4), expected)
    finally:
        torch.set_float32_matmul_precision(before)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(bicubic_downsample(x, 4), expected)


def test_repeats_bit_for_bit() -> None:
    x = torch.rand(2, 3, 96, 96)
    first = bicubic_downsample(x, 2, rounding="none")
    assert all(torch.equal(bicubic_downsample(x, 2, rounding="none"), first) for _ in range(5))


def test_works_in_inference_mode_and_with_gradients_on() -> None:
    """Cached matrices made in inference mode serve a later call on a tensor that requires a gradient."""
    x = torch.rand(1, 3, 38, 38)
    with torch.inference_mode():
        first = bicubic_downsample(x, 2)
    result = bicubic_downsample(x.requires_grad_(), 2)
    assert torch.equal(result, first)
    assert not result.requires_grad


IMAGE = torch.zeros(1, 3, 12, 12)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((IMAGE.numpy(), 2), {}, TypeError, "x is a ndarray"),
        ((IMAGE.double(), 2), {}, TypeError, "torch.float64"),
        ((IMAGE.long(), 2), {}, TypeError, "torch.int64"),
        ((IMAGE[0], 2), {}, ValueError, r"\(3, 12, 12\)"),
        ((IMAGE[:0], 2), {}, ValueError, r"\(0, 3, 12, 12\)"),
        ((IMAGE, 5), {}, ValueError, "scale is 5"),
        ((IMAGE, 2.0), {}, ValueError, "scale is 2.0"),
        ((IMAGE[..., :10], 3), {}, ValueError, "12 x 10"),
        ((IMAGE, 2), {"rounding": "pil"}, ValueError, "rounding is 'pil'"),
        ((IMAGE, 2), {"border": "zeros"}, ValueError, "border is 'zeros'"),
        ((IMAGE.byte(), 2), {"rounding": "none"}, TypeError, "torch.uint8"),
    ],
)
def test_errors(arguments: tuple, options: dict, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        bicubic_downsample(*arguments, **options)
