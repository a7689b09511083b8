import numpy as np
import pytest
import torch

from eco_fast.data.flat import FlatImages, TrainingSet
from eco_fast.data.pixels import bicubic_lr
from eco_fast.data.sampler import Plan, Sampler
from eco_fast.data.source import Patches
from tests.sets import with_centroids

PATCH = 8


def oriented(patch: np.ndarray, orientation: int) -> np.ndarray:
    if orientation & 1:
        patch = patch[:, ::-1]
    if orientation & 2:
        patch = patch[::-1]
    return patch.transpose(1, 0, 2) if orientation & 4 else patch


def cut(images: FlatImages, plan: Plan, k: int, patch: int, scale: int = 1) -> np.ndarray:
    top, left = int(plan.top[k]) * scale, int(plan.left[k]) * scale
    piece = images.image(int(plan.index[k]))[top : top + patch * scale, left : left + patch * scale]
    return oriented(piece, int(plan.orientation[k]))


def hwc(batch: torch.Tensor, k: int) -> np.ndarray:
    return batch[k].permute(1, 2, 0).numpy()


@pytest.fixture(params=[2, 3, 4])
def ts(request, rng) -> TrainingSet:
    scale = request.param
    sides = [(8, 8), (20, 13), (9, 30)]
    hrs = [rng.integers(0, 256, (h * scale, w * scale, 3), dtype=np.uint8) for h, w in sides]
    lrs = [bicubic_lr(hr, scale) for hr in hrs]
    plain = TrainingSet(FlatImages.from_arrays(hrs), FlatImages.from_arrays(lrs), scale)
    return with_centroids(plain, lambda lr: lr.repeat(scale, 0).repeat(scale, 1))


@pytest.fixture
def plan(ts) -> Plan:
    plan = Sampler(ts.lr.heights, ts.lr.widths, ts.scale, PATCH, 32, seed=1).plan(4)
    return plan._replace(orientation=torch.arange(32) % 8)


@pytest.fixture
def patches(ts, plan) -> Patches:
    return Patches(ts.by_kind(), plan, PATCH, ts.scale)


def test_targets_are_cut_and_oriented_in_channels_last(ts, plan, patches):
    for kind, images in (("hr", ts.hr), ("centroid", ts.centroid)):
        batch = patches.target(kind)
        assert batch.shape == (32, 3, PATCH * ts.scale, PATCH * ts.scale) and batch.dtype == torch.uint8
        assert batch.is_contiguous(memory_format=torch.channels_last)
        for k in range(32):
            np.testing.assert_array_equal(hwc(batch, k), cut(images, plan, k, PATCH, ts.scale))


@pytest.mark.parametrize("weight", [torch.tensor(0.3), torch.linspace(0, 1, 32)])
def test_input_is_the_blend(ts, plan, patches, weight):
    batch = patches.input(weight)
    assert batch.shape == (32, 3, PATCH, PATCH) and batch.dtype == torch.float32
    assert batch.is_contiguous(memory_format=torch.channels_last)
    for k, a in enumerate(weight.expand(32).double().tolist()):
        lr, centroid_lr = cut(ts.lr, plan, k, PATCH), cut(ts.centroid_lr, plan, k, PATCH)
        np.testing.assert_allclose(hwc(batch, k), (a * lr + (1 - a) * centroid_lr) / 255, atol=2e-7)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_unneeded_image_changes_no_bit(patches, alpha):
    weight = torch.tensor(alpha)
    reads = ("lr", "hr") if alpha else ("centroid_lr", "centroid")
    assert torch.equal(patches.input(weight, reads), patches.input(weight))


def test_what_was_not_read_is_named(patches):
    plain = patches._replace(images={kind: patches.images[kind] for kind in ("hr", "lr")})
    assert plain.input(torch.tensor(1.0), ("lr",)).shape[0] == 32
    with pytest.raises(ValueError, match="no centroid_lr"):
        plain.input(torch.tensor(0.5))
    with pytest.raises(ValueError, match="no centroid"):
        plain.target("centroid")
    with pytest.raises(ValueError, match="needs LR"):
        patches.input(torch.tensor(0.5), ("hr",))


def test_lr_patch_is_the_downsampled_image_not_the_downsampled_patch(ts, plan, patches):
    """Exact up to the patch's edge: equal to a crop of the whole image's LR, in every orientation."""
    lr = patches.input(torch.tensor(1.0), ("lr",))
    hr = patches.target("hr")
    inner = slice(2, -2)  # MATLAB's kernel reaches 2 LR pixels: farther in, a patch alone has all it needs
    for k in range(32):
        whole = bicubic_lr(ts.hr.image(int(plan.index[k])), ts.scale)
        top, left, o = int(plan.top[k]), int(plan.left[k]), int(plan.orientation[k])
        expected = oriented(whole[top : top + PATCH, left : left + PATCH], o)
        np.testing.assert_array_equal(np.rint(hwc(lr, k) * 255), expected)
        # The same LR from the oriented HR patch, brought back to the image's frame where the 8-bit filter belongs.
        upright = hwc(hr, k).transpose(1, 0, 2) if o & 4 else hwc(hr, k)
        upright = oriented(upright, o & 3)
        alone = oriented(bicubic_lr(upright, ts.scale), o)
        np.testing.assert_array_equal(alone[inner, inner], expected[inner, inner])
