"""The sampler is a pure function of (seed, step), and the window rule keeps true borders."""

import pytest
import torch

from eco_fast.data.rows import BLOCK
from eco_fast.data.sampler import Plan, Sampler, window
from eco_fast.errors import UserError

HEIGHTS, WIDTHS = [24, 300, 130, 40, 25], [30, 280, 120, 24, 24]

GOLDEN = [[2, 0, 3, 1, 1, 4, 0, 3], [9, 0, 4, 69, 228, 1, 0, 12], [2, 4, 6, 4, 7, 0, 1, 6]]


def _sampler(**changes: int) -> Sampler:
    settings = {"scale": 2, "patch": 24, "batch": 8, "seed": 1} | changes
    return Sampler(HEIGHTS, WIDTHS, **settings)


def _equal(a: Plan, b: Plan) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_any_step_is_reached_without_replay() -> None:
    sampler = _sampler()
    in_order = [sampler.plan(step) for step in range(40)]
    assert _equal(_sampler().plan(39), in_order[39])
    assert _equal(sampler.plan(3), in_order[3])
    assert not _equal(_sampler(seed=2).plan(3), in_order[3])


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("copies", [1, 3])
def test_ranks_split_the_global_batch(world_size: int, copies: int) -> None:
    whole = _sampler(patches_per_image=copies).plan(5)
    ranks = [_sampler(patches_per_image=copies, rank=r, world_size=world_size) for r in range(world_size)]
    parts = [sampler.plan(5) for sampler in ranks]
    assert _equal(Plan(*(torch.cat(columns) for columns in zip(*parts, strict=True))), whole)


@pytest.mark.parametrize("copies", [1, 4])
def test_an_epoch_holds_every_image_as_often_as_its_size_earns(copies: int) -> None:
    sampler = _sampler(batch=1, patches_per_image=copies)
    areas = [4 * h * w / 480**2 for h, w in zip(HEIGHTS, WIDTHS, strict=True)]
    expected = [max(1, round(area)) * copies for area in areas]
    assert sampler.epoch_length == sum(expected)
    epochs = [
        [sampler.plan(e * sampler.epoch_length + k).index.item() for k in range(sampler.epoch_length)] for e in (0, 1)
    ]
    for epoch in epochs:
        assert [epoch.count(i) for i in range(len(HEIGHTS))] == expected


def test_epochs_have_different_orders() -> None:
    sampler = Sampler([24] * 50, [24] * 50, 2, 24, 50, seed=0)
    first, second = sampler.plan(0).index, sampler.plan(1).index
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, torch.arange(50)) and torch.equal(second.sort().values, torch.arange(50))


def test_copies_of_an_image_are_in_different_batches() -> None:
    sampler = Sampler([24] * 64, [24] * 64, 2, 24, 16, seed=0, patches_per_image=4)
    for step in range(32):
        assert len(sampler.plan(step).index.unique()) == 16
    assert len(torch.cat([sampler.plan(step).index for step in range(8)]).unique()) < 64  # live images: a window


def test_patches_lie_inside_and_reach_every_corner_and_orientation() -> None:
    sampler = Sampler([26], [24], 2, 24, 1000, seed=0)
    plan = sampler.plan(0)
    assert plan.top.unique(return_counts=True)[1].tolist() == pytest.approx([1000 / 3] * 3, rel=0.2)
    assert plan.left.unique().tolist() == [0]
    counts = plan.orientation.unique(return_counts=True)[1]
    assert len(counts) == 8 and counts.tolist() == pytest.approx([125] * 8, rel=0.35)
    assert 0 <= plan.uniform.min() < 0.01 and 0.99 < plan.uniform.max() < 1
    assert plan.uniform.mean().item() == pytest.approx(0.5, abs=0.03)


def test_the_sequence_never_changes() -> None:
    plan = _sampler().plan(7)  # a resumed run of an older version must see the same patches
    assert plan.index.tolist() == GOLDEN[0]
    assert plan.top.tolist() == GOLDEN[1]
    assert plan.orientation.tolist() == GOLDEN[2]


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 30 x 30"):
        _sampler(patch=30)
    with pytest.raises(UserError, match="batch 8"):
        _sampler(world_size=3)
    with pytest.raises(ValueError, match="start at 1"):
        _sampler(batch=0)


def test_windows_slide_into_the_image_and_end_at_true_borders() -> None:
    top = torch.tensor([0, 1, 20, 40, 36])
    sides = torch.full((5,), 64)
    start, _, inner, _ = window(top, top, sides, sides, patch=24, context=2)
    assert start.tolist() == [0, 0, 18, 36, 34]  # 28 long: 36 + 28 = 64
    assert inner.tolist() == [0, 1, 2, 4, 2]
    small_start, _, small_inner, _ = window(top[:2], top[:2], sides[:2] - 38, sides[:2] - 38, patch=24, context=2)
    assert (small_start.tolist(), small_inner.tolist()) == ([0, 0], [0, 1])


@pytest.mark.parametrize("context", [0, 2])
def test_blocks_meet_without_a_seam(context: int) -> None:
    """The step before and after a border between blocks, first asked for in either order, and on a device."""
    sampler = _sampler(context=context)
    assert sampler.block == BLOCK and Sampler(HEIGHTS, WIDTHS, 2, 24, 1024, seed=1).block == 64
    border = 3 * BLOCK
    after, before = sampler.plan(border), sampler.plan(border - 1)
    again = _sampler(context=context)
    assert _equal(again.plan(border - 1), before) and _equal(again.plan(border), after)
    on_device = sampler.on("cpu")
    assert _equal(Plan.of(on_device(border)), after) and _equal(Plan.of(on_device(border - 1)), before)
    assert torch.equal(after.row, on_device(border))
    uniforms = sampler.uniforms(3)
    assert uniforms.shape == (BLOCK, len(after.index)) and torch.equal(uniforms[0], after.uniform)
    assert not _equal(before, after)
