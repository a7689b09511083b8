"""The blended student input against float64, with patches, orientations and end points."""

import pytest
import torch
from torch import Tensor

from eco_kernels import bicubic_downsample, downsample_mix, reference
from eco_kernels.bicubic import BORDERS, SCALES


def pair(scale: int, size: tuple[int, int] = (14, 11), seed: int = 0, batch: int = 8) -> tuple[Tensor, Tensor]:
    """A uint8 centroid and the LR of the same window, channels_last."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    centroid = torch.randint(0, 256, (batch, height * scale, width * scale, 3), generator=generator, dtype=torch.uint8)
    lr = torch.randint(0, 256, (batch, height, width, 3), generator=generator, dtype=torch.uint8)
    return centroid.permute(0, 3, 1, 2), lr.permute(0, 3, 1, 2)


@pytest.mark.parametrize("rounding", ["matlab", "none"])
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("scale", SCALES)
def test_against_float64(scale: int, alpha: float, border: str, rounding: str) -> None:
    centroid, lr = pair(scale)
    weight = torch.tensor(alpha)
    for images in ((centroid, lr), (centroid.float() / 255, lr), (centroid.contiguous(), lr.float() / 255)):
        result = downsample_mix(*images, weight, scale, rounding=rounding, border=border)
        expected = reference.downsample_mix(*images, weight, scale, rounding=rounding, border=border)
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-6)
        assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("scale", SCALES)
def test_end_points_are_exact(scale: int) -> None:
    centroid, lr = pair(scale)
    assert torch.equal(downsample_mix(centroid, lr, torch.tensor(1.0), scale), lr.float() / 255)
    down = bicubic_downsample(centroid, scale).float() / 255
    assert torch.equal(downsample_mix(centroid, lr, torch.tensor(0.0), scale), down)
    alpha = torch.tensor([0.0, 1.0] * 4)
    result = downsample_mix(centroid, lr, alpha, scale)
    assert torch.equal(result[::2], down[::2])
    assert torch.equal(result[1::2], lr[1::2].float() / 255)


@pytest.mark.parametrize("rounding", ["matlab", "none"])
@pytest.mark.parametrize("scale", SCALES)
def test_alpha_per_sample_with_patches_and_orientations(scale: int, rounding: str) -> None:
    """Windows wider than a patch and its context, and windows narrower, at the corners and inside."""
    alpha = torch.rand(8, generator=torch.Generator().manual_seed(3))
    orientation = torch.arange(8)
    for size, patch in (((14, 11), 5), ((14, 7), 5), ((30, 26), 6), ((9, 9), 9)):
        centroid, lr = pair(scale, size)
        room = torch.tensor([[size[0] - patch], [size[1] - patch]])
        top, left = (torch.tensor([0, 1, 0, 1, 0.5, 0.3, 0.1, 0.9]) * room).long()
        place = {"top": top, "left": left, "patch": patch, "orientation": orientation, "rounding": rounding}
        for images in ((centroid, lr), (centroid.contiguous(), lr.float())):
            result = downsample_mix(*images, alpha, scale, **place)
            expected = reference.downsample_mix(*images, alpha, scale, **place)
            # lr.float() holds values up to 255, so the tolerance follows the numbers.
            torch.testing.assert_close(result.double(), expected, rtol=1e-6, atol=1e-6)
            assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("orientation", range(8))
def test_orientation_of_whole_windows(orientation: int) -> None:
    centroid, lr = pair(2, (10, 10), batch=1)
    upright = downsample_mix(centroid, lr, torch.tensor(0.5), 2)
    result = downsample_mix(centroid, lr, torch.tensor(0.5), 2, orientation=torch.tensor([orientation]))
    expected = reference.orient(upright[0].permute(1, 2, 0), orientation).permute(2, 0, 1)
    assert torch.equal(result[0], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    centroid, lr = pair(4)
    centroid = (centroid.float() / 255).to(dtype)
    result = downsample_mix(centroid, lr, torch.tensor(0.3), 4, dtype=dtype)
    assert result.dtype == dtype
    full = downsample_mix(centroid, lr, torch.tensor(0.3), 4)
    assert torch.equal(result, full.to(dtype))
    torch.testing.assert_close(
        full.double(), reference.downsample_mix(centroid, lr, torch.tensor(0.3), 4), rtol=0, atol=1e-6
    )


def test_repeats_bit_for_bit_and_leaves_its_inputs_alone() -> None:
    centroid, lr = (image.float() / 255 for image in pair(2))
    copies = centroid.clone(), lr.clone()
    alpha = torch.tensor(0.4)
    first = downsample_mix(centroid, lr, alpha, 2, rounding="none")
    assert all(torch.equal(downsample_mix(centroid, lr, alpha, 2, rounding="none"), first) for _ in range(5))
    assert torch.equal(centroid, copies[0])
    assert torch.equal(lr, copies[1])


CENTROID, LR = pair(2, (8, 6), batch=2)
PLACE = torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"centroid": CENTROID.double()}, TypeError, "centroid has dtype torch.float64"),
        ({"lr": LR[..., 1:]}, ValueError, r"lr has shape \(2, 3, 8, 5\)"),
        ({"lr": LR.to("meta")}, ValueError, "lr is on meta"),
        ({"alpha": 0.5}, TypeError, "alpha is a float"),
        ({"alpha": torch.zeros(3)}, ValueError, r"\(3,\)"),
        ({"scale": 3}, ValueError, "multiples of the scale 3"),
        ({"rounding": "up"}, ValueError, "'up'"),
        ({"border": "wrap"}, ValueError, "'wrap'"),
        ({"dtype": torch.float64}, ValueError, "torch.float64"),
        ({"orientation": PLACE}, ValueError, "8 x 6"),
        ({"top": PLACE}, ValueError, "left and patch missing"),
        ({"top": PLACE, "left": PLACE, "patch": 7}, ValueError, "patch is 7"),
        ({"top": PLACE, "left": PLACE, "patch": 0}, ValueError, "patch is 0"),
        ({"top": PLACE + 5, "left": PLACE, "patch": 4}, ValueError, "top holds 5"),
        ({"top": PLACE, "left": PLACE - 1, "patch": 4}, ValueError, "left holds -1"),
        ({"top": PLACE[:1], "left": PLACE, "patch": 4}, ValueError, r"top has shape \(1,\)"),
        ({"top": PLACE, "left": PLACE, "patch": 4, "orientation": PLACE + 8}, ValueError, "orientation holds 8"),
    ],
)
def test_errors(changed: dict, error: type[Exception], words: str) -> None:
    arguments = {"centroid": CENTROID, "lr": LR, "alpha": torch.tensor(0.5), "scale": 2}
    downsample_mix(**arguments)
    with pytest.raises(error, match=words):
        downsample_mix(**(arguments | changed))
