"""The gather kernels against the integer and float64 truth, in Triton's interpreter."""

import pytest
import torch
from torch import Tensor

from eco_kernels import gather_mix, gather_patches, reference
from eco_kernels.dispatch import runs_kernels

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


def test_the_kernels_are_what_is_tested() -> None:
    assert runs_kernels(torch.device("cpu"))


@pytest.mark.grid(patch=(1, 8, 17, 20), batch=(1, 9), channels=(1, 3), dtype=(torch.int32, torch.int64))
def test_patches_are_equal_in_every_value(patch, batch, channels, dtype, fences) -> None:
    store, _, offsets, widths = stores(channels)
    at = places(patch, batch, dtype)
    result = gather_patches(fences.copy(store), offsets, widths.to(dtype), *at, patch, channels=channels)
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
    result = gather_mix(first, second, offsets, widths, *at, patch, alpha, dtype, channels=channels)
    expected = reference.gather_mix(first, second, offsets, widths, *at, patch, alpha, channels=channels)
    half_ulp = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2
    assert result.dtype == dtype
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result.double(), expected, rtol=half_ulp, atol=3e-7)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_end_points_are_exact(alpha: float) -> None:
    first, second, offsets, widths = stores(3)
    at = places(11, 8)
    result = gather_mix(first, second, offsets, widths, *at, 11, torch.tensor(alpha), torch.float32)
    store = first if alpha else second
    patches = reference.gather_patches(store, offsets, widths, *at, 11)
    assert torch.equal(result, patches.permute(0, 3, 1, 2).float() / 255)


def test_tables_that_are_not_dense() -> None:
    first, second, offsets, widths = stores(3)
    at = places(11, 8)
    alpha = torch.rand(8, generator=torch.Generator().manual_seed(0))
    apart = [torch.stack((t, t + 1), 1)[:, 0] for t in (offsets, widths, *at, alpha)]
    assert not any(t.is_contiguous() for t in apart)
    *tables, spread = apart
    assert torch.equal(gather_patches(first, *tables, 11), gather_patches(first, offsets, widths, *at, 11))
    dense = gather_mix(first, second, offsets, widths, *at, 11, alpha)
    assert torch.equal(gather_mix(first, second, *tables, 11, spread), dense)


@pytest.mark.parametrize("inside", [False, True], ids=["image begins past it", "corner lies past it"])
def test_offsets_past_2_to_the_31(inside) -> None:
    """The store is written where the patch lies only, so it takes no memory."""
    width, height, patch = (40_000, 17_921, 8) if inside else (50, 20, 8)
    offset = 0 if inside else (2**31 // 3 + 1) * 3
    store = torch.empty(offset + height * width * 3, dtype=torch.uint8)
    top, left = height - patch, width - patch - 1
    pixels = torch.randint(0, 256, (patch, patch, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for row in range(patch):
        start = offset + ((top + row) * width + left) * 3
        assert start > 2**31
        store[start : start + patch * 3] = pixels[row].flatten()
    at = tuple(torch.tensor([value]) for value in (0, top, left, 0))
    offsets, widths = torch.tensor([offset]), torch.tensor([width])
    assert torch.equal(gather_patches(store, offsets, widths, *at, patch)[0], pixels)
    mixed = gather_mix(store, store, offsets, widths, *at, patch, torch.tensor(1.0))
    assert torch.equal(mixed[0].permute(1, 2, 0), pixels.float() / 255)
