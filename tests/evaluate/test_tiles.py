"""Tiled inference against whole images."""

import numpy as np
import pytest
import torch
from torch import nn

from eco_fast.errors import UserError
from eco_fast.evaluate import inference, tiles
from eco_fast.evaluate.inference import plan_tiles, super_resolve
from eco_fast.evaluate.tiles import peak_bytes, receptive_radius, tile_that_fits
from eco_fast.models import build


@pytest.mark.parametrize(("height", "width", "side", "overlap"), [(50, 70, 16, 5), (40, 33, 32, 8), (7, 90, 10, 9)])
def test_tiles_cover_the_image_once(height: int, width: int, side: int, overlap: int) -> None:
    seen = np.zeros((height, width), dtype=int)
    sizes = set()
    for tile in tiles.tiles(height, width, side, overlap):
        assert 0 <= tile.top <= height - tile.height and 0 <= tile.left <= width - tile.width
        y, x = tile.top + tile.inner_top, tile.left + tile.inner_left
        seen[y : y + tile.inner_height, x : x + tile.inner_width] += 1
        # What surrounds the kept part is there, up to the image's side.
        assert tile.inner_top >= min(overlap, y) and tile.inner_left >= min(overlap, x)
        below = tile.height - tile.inner_top - tile.inner_height
        assert below >= min(overlap, height - y - tile.inner_height)
        sizes.add((tile.height, tile.width))
    assert (seen == 1).all() and len(sizes) == 1


def smooth(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    x = torch.from_numpy(rng.random((1, 3, height // 4 + 1, width // 4 + 1), dtype=np.float32))
    large = nn.functional.interpolate(x, size=(height, width), mode="bicubic").clamp(0, 1)
    return (large[0] * 255).round().byte().permute(1, 2, 0).contiguous().numpy()


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_tiles_equal_the_whole_image(rng: np.random.Generator, scale: int) -> None:
    torch.manual_seed(scale)
    network = build("edsr-tiny", scale, blocks=2, channels=8)
    lr = smooth(rng, 61, 83)
    whole = super_resolve(network, lr)
    assert whole.std() > 1
    for side in (16, 32, 50):
        tiled = super_resolve(network, lr, tile=side)
        off = np.abs(tiled.astype(int) - whole.astype(int))
        assert off.max() <= 1 and (off > 0).mean() <= 1e-4


def test_less_overlap_would_show(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = build("edsr-tiny", 2, blocks=2, channels=8)
    lr = smooth(rng, 61, 83)
    whole = super_resolve(network, lr)
    monkeypatch.setattr(inference, "overlap_of", lambda network: 1)
    assert (super_resolve(network, lr, tile=16) != whole).mean() > 1e-4


@pytest.mark.parametrize("scale", [2, 4])
def test_the_radius_is_no_guess(scale: int) -> None:
    """A pixel so far away leaves the middle as it is, and networks that look further say so."""
    network = build("edsr-tiny", scale, blocks=2, channels=8)
    radius = receptive_radius(network)
    assert radius is not None
    side = 2 * radius + 3
    x = torch.rand(1, 3, side, side)
    changed = x.clone()
    changed[..., 0, :] = changed[..., -1, :] = 0
    changed[..., :, 0] = changed[..., :, -1] = 0
    middle = slice((radius + 1) * scale, (radius + 2) * scale)
    with torch.no_grad():
        torch.testing.assert_close(network(changed)[..., middle, middle], network(x)[..., middle, middle])
    assert receptive_radius(build("rlfn-s", 2)) is None


def test_the_tile_follows_the_memory() -> None:
    def side(height: int, width: int, free: int) -> int | None:
        return tile_that_fits(height, width, overlap=12, bytes_per_pixel=100, free=free)

    free = round(1_000_000 * 100 / 0.8)
    assert side(1000, 1000, free) is None
    assert side(1000, 1001, free) == 1000 - 2 * 12
    assert side(1000, 1001, 1000) == side(1000, 1001, -1) == 32


@pytest.mark.parametrize("ensemble", [False, True])
def test_what_tensors_take_is_measured(ensemble: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build("edsr-tiny", 2, blocks=2, channels=8)
    lr = np.zeros((300, 200, 3), dtype=np.uint8)
    plan = plan_tiles(network, lr, ensemble=ensemble)
    assert (plan.side, plan.number) == (None, 1)
    needs = inference._needs[network]["fp32", ensemble]
    # At least, per LR pixel: the input, two layers of 8 channels, the picture in floats.
    assert needs.scale == 2 and 4 * (3 + 2 * 8 + 12) < needs.bytes_per_pixel / 2 < 4 * (3 + 8 * 8 + 6 * 12)
    monkeypatch.setattr(inference, "free_memory", lambda device: 10_000_000)
    plan = plan_tiles(network, lr, ensemble=ensemble)
    assert plan.free == 10_000_000 - 4 * lr.nbytes  # the result lies there too
    assert plan.side is not None and plan.side < 200
    assert plan.number == -(-300 // plan.side) * -(-200 // plan.side)
    monkeypatch.setattr(inference, "free_memory", lambda device: pytest.fail("asked"))
    assert plan_tiles(network, lr, tile=100).number == 6
    assert plan_tiles(network, lr[:128, :128]).side is None  # of small images nothing is asked


def test_tensors_that_are_let_go_do_not_count() -> None:
    def work(hold: bool) -> None:
        held = []
        for _ in range(4):
            held.append(torch.zeros(1000).add_(1)[10:])
            if not hold:
                held.clear()

    assert peak_bytes(lambda: work(hold=True)) == 4 * peak_bytes(lambda: work(hold=False)) == 2 * 4 * 4000


class Tight(nn.Module):
    """Runs out of memory above a size, as a GPU would."""

    def __init__(self, limit: int, error: RuntimeError | None = None) -> None:
        super().__init__()
        self.limit, self.seen = limit, []
        self.error = error or torch.OutOfMemoryError("CUDA out of memory")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x.shape[-1])
        if x.shape[-1] > self.limit:
            raise self.error
        return nn.functional.interpolate(x, scale_factor=2, mode="nearest")


def test_tiles_get_smaller_until_they_fit(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "_ALWAYS_FITS", 10**6)
    lr = rng.integers(0, 256, (200, 300, 3), dtype=np.uint8)
    network = Tight(150)
    sr = super_resolve(network, lr, device="cpu")
    assert network.seen[:2] == [300, 150 + 32] and max(network.seen[2:]) == 75 + 2 * 32
    np.testing.assert_array_equal(sr, lr.repeat(2, 0).repeat(2, 1))
    with pytest.raises(UserError, match="smallest tiles"):
        super_resolve(Tight(10), lr, device="cpu")


def test_no_memory_for_the_work_space_of_a_convolution(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch gives cuDNN's other algorithms a trial then, and names no memory; where all tiles fail it is not that."""
    monkeypatch.setattr(inference, "_ALWAYS_FITS", 10**6)
    lr = rng.integers(0, 256, (200, 300, 3), dtype=np.uint8)
    error = RuntimeError("GET was unable to find an engine to execute this computation")
    sr = super_resolve(Tight(150, error), lr, device="cpu")
    np.testing.assert_array_equal(sr, lr.repeat(2, 0).repeat(2, 1))
    with pytest.raises(RuntimeError, match="unable to find an engine"):
        super_resolve(Tight(10, error), lr, device="cpu")


def test_progress_counts_tiles(rng: np.random.Generator) -> None:
    seen: list[tuple[int, int]] = []
    network = build("edsr-tiny", 2, blocks=1, channels=4)
    super_resolve(network, smooth(rng, 40, 64), tile=32, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
