"""The gather kernels against the integer and float64 truth, in Triton's interpreter."""

import pytest
import torch
from torch import Tensor

from eco_kernels import reference
from eco_kernels.triton_gather import launch_gather_mix, launch_gather_patches

SIZES = ((20, 31), (40, 24), (23, 23))


def stores(channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two stores of the same sizes, offsets, widths."""
    sizes = torch.tensor([h * w * channels for h, w in SIZES])
    total = int(sizes.sum())
    generator = torch.Generator().manual_seed(channels)
    first, second = torch.randint(0, 256, (2, total), generator=generator, dtype=torch.uint8)
    return first, second, sizes.cumsum(0) - sizes, torch.tensor([w for _, w in SIZES])


def places(patch: int, batch: int, dtype: torch.dtype = torch.int64) -> tuple[Tensor, ...]:
    """Index, top, left, orientation: corners and orientations in turn."""
    index = [k % 3 for k in range(batch)]
    top = [(k // 3 % 2) * (SIZES[i][0] - patch) for k, i in enumerate(index)]
    left = [(k // 2 % 2) * (SIZES[i][1] - patch) for k, i in enumerate(index)]
    return tuple(torch.tensor(column, dtype=dtype) for column in (index, top, left, [k % 8 for k in range(batch)]))


@pytest.mark.grid(patch=(1, 8, 17, 20), batch=(1, 9), channels=(1, 3), dtype=(torch.int32, torch.int64))
def test_patches_are_equal_in_every_value(patch, batch, channels, dtype, fences) -> None:
    store, _, offsets, widths = stores(channels)
    at = places(patch, batch, dtype)
    result = launch_gather_patches(fences.copy(store), offsets, widths.to(dtype), *at, patch, channels)
    assert torch.equal(result, reference.gather_patches(store, offsets, widths, *at, patch, channels=channels))


@pytest.mark.grid(
    patch=(5, 17),
    batch=(1, 9),
    channels=(1, 3),
    dtype=(torch.float32, torch.bfloat16, torch.float16),
    per_sample=(False, True),
)
def test_blend(patch, batch, channels, dtype, per_sample, fences) -> None:
    first, second, offsets, widths = stores(channels)
    at = places(patch, batch)
    alpha = torch.rand(batch, generator=torch.Generator().manual_seed(0)) if per_sample else torch.tensor(0.37)
    result = launch_gather_mix(first, second, offsets, widths, *at, patch, alpha, dtype, channels)
    expected = reference.gather_mix(first, second, offsets, widths, *at, patch, alpha, channels=channels)
    half_ulp = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2
    assert result.dtype == dtype
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result.double(), expected, rtol=half_ulp, atol=3e-7)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_end_points_are_exact(alpha: float) -> None:
    first, second, offsets, widths = stores(3)
    at = places(11, 8)
    result = launch_gather_mix(first, second, offsets, widths, *at, 11, torch.tensor(alpha), torch.float32, 3)
    store = first if alpha else second
    patches = reference.gather_patches(store, offsets, widths, *at, 11)
    assert torch.equal(result, patches.permute(0, 3, 1, 2).float() / 255)


def test_offsets_past_2_to_the_31() -> None:
    """Image 0 would lie 2^32 bytes before the store's real memory: only a 64-bit sum of offsets lands inside."""
    store, _, offsets, widths = stores(3)
    index, top, left, orientation = places(9, 8)
    far = 2**32
    # The offset of an image is far away, the corner brings it back: top counts rows of `widths` pixels.
    rows = torch.full_like(top, far // 3)
    shifted = offsets - rows[0] * widths * 3
    result = launch_gather_patches(store, shifted, widths, index, top + rows[0], left, orientation, 9, 3)
    assert shifted.min() < -(2**31)
    assert torch.equal(result, reference.gather_patches(store, offsets, widths, index, top, left, orientation, 9))
