"""The online teacher against the cached one, which is the truth: the teacher's SR of whole images."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eco_fast.data.flat import TrainingSet
from eco_fast.data.patches import input_patches, target_patches
from eco_fast.data.sampler import Plan, Sampler
from eco_fast.eco.objective import blend
from eco_fast.errors import UserError
from eco_fast.evaluate.inference import super_resolve
from eco_fast.models import build
from eco_fast.train.online import OnlineTeacher, cut
from eco_fast.train.teacher import freeze
from eco_kernels import reference
from tests.sets import training_set, with_centroids


def plans(images: TrainingSet, patch: int, batch: int, steps: int, *, identity: bool = False) -> list[Plan]:
    sampler = Sampler(images.lr.heights, images.lr.widths, images.scale, patch, batch, seed=1)
    found = [sampler.plan(step) for step in range(steps)]
    return [p._replace(orientation=torch.zeros_like(p.orientation)) for p in found] if identity else found


class Nearest(nn.Module):
    """A teacher without context: every HR pixel is a function of its LR pixel alone, not symmetric in its places."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.slopes = torch.linspace(0.5, 1.0, scale**2).view(1, 1, scale, scale)

    def forward(self, x: Tensor) -> Tensor:
        grown = x.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)
        return grown * self.slopes.repeat(1, 1, x.shape[2], x.shape[3]).to(x.device)


def cached(images: TrainingSet, teacher: nn.Module) -> TrainingSet:
    return with_centroids(images, lambda lr: super_resolve(teacher, lr))


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_a_teacher_without_context_gives_the_cached_batches(scale: int, alpha: float) -> None:
    """All orientations, and patches at the sides of the images: every value equal."""
    teacher = freeze(Nearest(scale))
    images = training_set(scale, ((16, 19), (23, 16), (14, 14)))
    truth = cached(images, teacher)
    online = OnlineTeacher(teacher, images, 10)
    for plan in plans(images, 10, 8, 6):
        weights = blend("eco", alpha, plan.uniform)
        batch = online.batch(plan, weights)
        torch.testing.assert_close(batch.x, input_patches(truth, plan, 10, weights.input), rtol=0, atol=3e-7)
        assert batch.centroid is not None
        assert torch.equal(batch.centroid, target_patches(truth.centroid, plan, 10, scale))
        assert (batch.hr is None) == (alpha == 0)
        if batch.hr is not None:
            assert torch.equal(batch.hr, target_patches(images.hr, plan, 10, scale))


def differences(
    scale: int, *, identity: bool, context: int, patch: int = 64, border: int = 0
) -> tuple[float, float, int]:
    """Share of values that differ from the cached centroid, mean difference and largest one, in 8-bit levels."""
    torch.manual_seed(0)
    teacher = freeze(build("edsr-tiny", scale, blocks=4, channels=16))
    images = training_set(scale, ((96, 110), (101, 97)))
    truth = cached(images, teacher)
    online = OnlineTeacher(teacher, images, patch, context=context)
    apart = []
    for plan in plans(images, patch, 4, 2, identity=identity):
        weights = blend("eco-centroid", 0.0, plan.uniform)
        ours, theirs = online.batch(plan, weights).centroid, target_patches(truth.centroid, plan, patch, scale)
        assert ours is not None
        inside = slice(border * scale, (patch - border) * scale)
        apart.append((ours.int() - theirs.int()).abs()[:, :, inside, inside].flatten())
    all_ = torch.cat(apart)
    return (all_ > 0).double().mean().item(), all_.double().mean().item(), int(all_.max())


@pytest.mark.slow
@pytest.mark.parametrize("identity", [True, False])
def test_beyond_the_receptive_radius_the_online_centroid_is_the_cached_one(identity: bool) -> None:
    """4 blocks, head, two ends: 11 convolutions of 3 x 3 see 11 LR pixels far; fp32 may move a tie by one level."""
    share, _, largest = differences(2, identity=identity, context=2, border=11 - 2)
    assert largest <= 1
    assert share <= 1e-4


@pytest.mark.slow
def test_more_context_comes_nearer() -> None:
    by_context = [differences(2, identity=True, context=context)[1] for context in (2, 6, 11)]
    assert by_context[0] > by_context[1] > by_context[2]
    assert by_context[2] < 1e-4


@pytest.mark.parametrize("rounded", [True, False])
def test_rounding(rounded: bool) -> None:
    images = training_set(2, ((20, 20),))
    online = OnlineTeacher(freeze(Nearest(2)), images, 10, rounded=rounded)
    plan = plans(images, 10, 4, 1)[0]
    batch = online.batch(plan, blend("eco-centroid", 0.0, plan.uniform))
    assert batch.centroid is not None
    assert batch.centroid.dtype == (torch.uint8 if rounded else torch.float32)
    assert batch.x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32])
def test_cut(dtype: torch.dtype) -> None:
    generator = np.random.default_rng(0)
    images = torch.from_numpy(generator.integers(0, 256, (8, 3, 11, 9))).to(dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    top, left, orientation = torch.tensor([0, 1, 2, 3, 4, 5, 5, 0]), torch.arange(8) % 4, torch.arange(8)
    result = cut(images, top, left, orientation, 6)
    assert result.is_contiguous(memory_format=torch.channels_last)
    for i in range(8):
        patch = images[i, :, top[i] : top[i] + 6, left[i] : left[i] + 6].permute(1, 2, 0)
        assert torch.equal(result[i].permute(1, 2, 0), reference.orient(patch, int(orientation[i])))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda images: OnlineTeacher(Nearest(2), images, 18, context=2), "needs images of 22 LR pixels"),
        (lambda images: OnlineTeacher(Nearest(2), images, 10, context=1), "teacher.context is 1"),
    ],
)
def test_errors(make: Callable, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make(training_set(2, ((20, 24),)))


def test_a_freed_teacher_cannot_be_asked() -> None:
    images = training_set(2, ((20, 24),))
    online = OnlineTeacher(Nearest(2), images, 10)
    online.free()
    with pytest.raises(ValueError, match="freed"):
        online.centroids(torch.zeros((1, 3, 14, 14), dtype=torch.uint8))
