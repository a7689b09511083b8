"""The online teacher against the cached one, which is the truth: the teacher's SR of whole images."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eco_fast.config import load_config
from eco_fast.data.flat import TrainingSet
from eco_fast.data.sampler import Sampler
from eco_fast.data.source import Patches, Resident
from eco_fast.errors import UserError
from eco_fast.evaluate.inference import super_resolve
from eco_fast.models import build
from eco_fast.train.batches import make_batch
from eco_fast.train.online import OnlineTeacher, cut, online_teacher
from eco_fast.train.teacher import freeze
from eco_kernels import reference
from tests.sets import blended, training_set, with_centroids


def cuts(
    images: TrainingSet, patch: int, batch: int, steps: int, *, context: int = 2, identity: bool = False
) -> list[Patches]:
    """Patches with windows; of whole images, so they can be cut from another set with centroids, too."""
    sampler = Sampler(images.heights, images.widths, images.scale, patch, batch, seed=1, context=context)

    def row(step: int) -> Tensor:
        found = sampler.plan(step)
        return (found._replace(orientation=torch.zeros_like(found.orientation)) if identity else found).row

    source = Resident(images, row, lambda step: ("window", "hr"), patch, context)
    return [source.fetch(step).patches() for step in range(steps)]


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
    online = OnlineTeacher(teacher)
    for patches in cuts(images, 10, 8, 6):
        weights, reads = blended("eco", alpha, patches.plan.uniform)
        batch, expected = make_batch(patches, weights, reads, online), patches._replace(images=truth.by_kind())
        torch.testing.assert_close(batch.x, expected.input(weights.input), rtol=0, atol=3e-7)
        assert batch.centroid is not None
        assert torch.equal(batch.centroid, expected.target("centroid"))
        assert (batch.hr is None) == (alpha == 0)
        if batch.hr is not None:
            assert torch.equal(batch.hr, expected.target("hr"))


def differences(
    scale: int, *, identity: bool, context: int, patch: int = 64, border: int = 0
) -> tuple[float, float, int]:
    """Share of values that differ from the cached centroid, mean difference and largest one, in 8-bit levels."""
    torch.manual_seed(0)
    teacher = freeze(build("edsr-tiny", scale, blocks=4, channels=16))
    images = training_set(scale, ((96, 110), (101, 97)))
    truth = cached(images, teacher)
    online = OnlineTeacher(teacher)
    apart = []
    for patches in cuts(images, patch, 4, 2, context=context, identity=identity):
        _, ours = online.pair(patches, torch.tensor(0.0))
        theirs = patches._replace(images=truth.by_kind()).target("centroid")
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


@pytest.mark.parametrize(("rounding", "dtype"), [("8bit", torch.uint8), ("none", torch.float32)])
def test_rounding(rounding: str, dtype: torch.dtype) -> None:
    images = training_set(2, ((20, 20),))
    config = load_config("edsr-tiny", flags={"teacher.rounding": rounding, "data.patch": 10, "run.compile": "off"})
    x, centroid = online_teacher(config, Nearest(2), images).pair(cuts(images, 10, 4, 1)[0], torch.tensor(0.0))
    assert centroid.dtype == dtype
    assert x.is_contiguous(memory_format=torch.channels_last)


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
    ("settings", "words"),
    [
        ({"data.patch": 18}, "needs images of 22 LR pixels a side, the smallest has 20"),
        ({"data.patch": 10, "teacher.context": 1}, "teacher.context is 1"),
        ({"data.patch": 10, "teacher.context": 6}, "needs images of 22"),
    ],
)
def test_errors(settings: dict[str, object], words: str) -> None:
    config = load_config("edsr-tiny", flags={"teacher.mode": "online", **settings})
    with pytest.raises(UserError, match=words):
        online_teacher(config, Nearest(2), training_set(2, ((20, 24),)))


def test_patches_without_windows_are_refused() -> None:
    patches = cuts(training_set(2, ((20, 24),)), 10, 4, 1)[0]
    with pytest.raises(ValueError, match="needs windows"):
        OnlineTeacher(Nearest(2)).pair(patches._replace(window=None), torch.tensor(0.5))
