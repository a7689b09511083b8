"""Patches from flat stores against plain slicing, in all orientations."""

import numpy as np
import pytest
import torch
from torch import Tensor

from eco_kernels import gather_mix, gather_patches, reference

SIZES = ((20, 31), (40, 24), (17, 17))


def flat_store(channels: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, list[np.ndarray]]:
    """Three images back to back: store, offsets, widths, and the images themselves."""
    generator = np.random.default_rng(seed)
    pictures = [generator.integers(0, 256, (h, w, channels), dtype=np.uint8) for h, w in SIZES]
    sizes = [picture.size for picture in pictures]
    offsets = torch.tensor([0, *np.cumsum(sizes)[:-1].tolist()])
    widths = torch.tensor([w for _, w in SIZES])
    return torch.from_numpy(np.concatenate([picture.ravel() for picture in pictures])), offsets, widths, pictures


def corner_plan(patch: int) -> tuple[Tensor, ...]:
    """Index, top, left, orientation: every orientation at both extreme corners of every image."""
    rows = [
        (i, corner * (h - patch), corner * (w - patch), o)
        for i, (h, w) in enumerate(SIZES)
        for corner in (0, 1)
        for o in range(8)
    ]
    return tuple(torch.tensor(column) for column in zip(*rows, strict=True))


def orient(patch: np.ndarray, orientation: int) -> np.ndarray:
    """The convention in NumPy, apart from the package."""
    if orientation & 1:
        patch = patch[:, ::-1]
    if orientation & 2:
        patch = patch[::-1]
    return patch.transpose(1, 0, 2) if orientation & 4 else patch


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("patch", [1, 5, 17])
def test_gather(patch: int, channels: int) -> None:
    store, offsets, widths, pictures = flat_store(channels)
    plan = corner_plan(patch)
    result = gather_patches(store, offsets, widths, *plan, patch, channels=channels)
    assert result.dtype == torch.uint8
    assert result.is_contiguous()
    assert torch.equal(result, reference.gather_patches(store, offsets, widths, *plan, patch, channels=channels))
    for k, (i, y, x, o) in enumerate(zip(*(column.tolist() for column in plan), strict=True)):
        np.testing.assert_array_equal(result[k].numpy(), orient(pictures[i][y : y + patch, x : x + patch], o))


def test_orientations_are_eight() -> None:
    patches = [reference.orient(torch.arange(9).view(3, 3, 1), o).flatten().tolist() for o in range(8)]
    assert len({tuple(patch) for patch in patches}) == 8


def test_int32_indices() -> None:
    store, offsets, widths, _ = flat_store()
    plan = corner_plan(6)
    expected = gather_patches(store, offsets, widths, *plan, 6)
    assert torch.equal(gather_patches(store, offsets, widths.int(), *(t.int() for t in plan), 6), expected)


def test_store_beyond_31_bits() -> None:
    """Offsets past 2^31 elements; the store is never written, so it takes no memory."""
    size = 2**31 + 3 * 100
    store = torch.empty(size, dtype=torch.uint8)
    start = (2**31 // 3 + 1) * 3
    picture = torch.arange(3 * 64, dtype=torch.uint8)
    store[start : start + len(picture)] = picture
    zero = torch.zeros(1, dtype=torch.int64)
    result = gather_patches(store, torch.tensor([start]), torch.tensor([8]), zero, zero + 1, zero + 2, zero, 4)
    assert torch.equal(result[0], picture.view(8, 8, 3)[1:5, 2:6])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_mix(alpha: float, dtype: torch.dtype) -> None:
    store_a, offsets, widths, _ = flat_store(seed=1)
    store_b = flat_store(seed=2)[0]
    place = (offsets, widths, *corner_plan(7), 7)
    result = gather_mix(store_a, store_b, *place, torch.tensor(alpha), dtype)
    expected = reference.gather_mix(store_a, store_b, *place, torch.tensor(alpha))
    assert result.dtype == dtype
    assert result.is_contiguous(memory_format=torch.channels_last)
    tolerance = 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps / 2
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=tolerance)
    if alpha in (0, 1):
        only = gather_patches(store_a if alpha else store_b, *place).permute(0, 3, 1, 2)
        assert torch.equal(result, (only.float() / 255).to(dtype))


def test_mix_alpha_per_sample() -> None:
    store_a, offsets, widths, _ = flat_store(seed=1)
    store_b = flat_store(seed=2)[0]
    place = (offsets, widths, *corner_plan(7), 7)
    alpha = torch.rand(48)
    result = gather_mix(store_a, store_b, *place, alpha)
    torch.testing.assert_close(
        result.double(), reference.gather_mix(store_a, store_b, *place, alpha), rtol=0, atol=1e-6
    )


ONE = torch.zeros(1, dtype=torch.int64)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"store": torch.zeros(3000)}, TypeError, "torch.float32"),
        ({"store": torch.zeros(3000, 1, dtype=torch.uint8)}, ValueError, r"\(3000, 1\)"),
        ({"store": torch.zeros(6000, dtype=torch.uint8)[::2]}, ValueError, "stride"),
        ({"offsets": torch.zeros(1, dtype=torch.int32)}, TypeError, "torch.int32"),
        ({"offsets": torch.ones(1, dtype=torch.int64)}, ValueError, "elements 1"),
        ({"widths": torch.ones(2, dtype=torch.int64)}, ValueError, "widths"),
        ({"index": ONE + 1}, ValueError, "index holds 1"),
        ({"index": ONE - 1}, ValueError, "index holds -1"),
        ({"top": ONE + 97}, ValueError, "top 97"),
        ({"left": ONE + 7}, ValueError, "left 7"),
        ({"left": ONE - 1}, ValueError, "left -1"),
        ({"top": torch.zeros(2, dtype=torch.int64)}, ValueError, "2 entries"),
        ({"top": ONE.float()}, TypeError, "top has dtype torch.float32"),
        ({"orientation": ONE + 8}, ValueError, "orientation holds 8"),
        ({"patch": 0}, ValueError, "patch is 0"),
        ({"store": torch.zeros(3000, dtype=torch.uint8, device="meta")}, ValueError, "on cpu"),
    ],
)
def test_errors(changed: dict, error: type[Exception], words: str) -> None:
    arguments = {
        "store": torch.zeros(3000, dtype=torch.uint8),
        "offsets": ONE,
        "widths": ONE + 10,
        "index": ONE,
        "top": ONE + 96,
        "left": ONE + 6,
        "orientation": ONE,
        "patch": 4,
    }
    gather_patches(**arguments)
    with pytest.raises(error, match=words):
        gather_patches(**(arguments | changed))


@pytest.mark.parametrize(
    ("alpha", "dtype", "error", "words"),
    [
        (0.5, torch.float32, TypeError, "alpha is a float"),
        (torch.tensor(0.5).double(), torch.float32, TypeError, "torch.float64"),
        (torch.zeros(3), torch.float32, ValueError, r"\(3,\)"),
        (torch.tensor(0.5), torch.uint8, ValueError, "dtype is torch.uint8"),
    ],
)
def test_mix_errors(alpha: object, dtype: torch.dtype, error: type[Exception], words: str) -> None:
    store = torch.zeros(3000, dtype=torch.uint8)
    with pytest.raises(error, match=words):
        gather_mix(store, store, ONE, ONE + 10, ONE, ONE, ONE, ONE, 4, alpha, dtype)
    with pytest.raises(ValueError, match="store_b"):
        gather_mix(store, store[:-3], ONE, ONE + 10, ONE, ONE, ONE, ONE, 4, torch.tensor(0.5))
