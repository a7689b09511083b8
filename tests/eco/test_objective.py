"""The five modes as weights on the real and the centroid pair."""

import pytest
import torch

from eco_fast.eco.objective import MODES, Blend, blends, needs_teacher, reads

UNIFORM = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)


@pytest.mark.parametrize(
    ("mode", "weights"),
    [("vanilla", (1.0, 1.0)), ("kd", (1.0, 0.0)), ("eco-centroid", (0.0, 0.0)), ("eco", (0.25, 0.25))],
)
def test_weights_of_the_mixing_modes(mode: str, weights: tuple[float, float]) -> None:
    rows = blends(mode, [0.5, 0.25], UNIFORM.repeat(2, 1))
    assert rows.shape == (2, 2) and rows.dtype == torch.float32
    assert (Blend(*rows[1]).input.item(), Blend(*rows[1]).target.item()) == weights


def test_alpha_sample_draws_whole_samples() -> None:
    rows = blends("alpha-sample", [0.5, 0.6], UNIFORM.repeat(2, 1))
    assert rows.dtype == torch.float32
    assert rows[:, 0].tolist() == [[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]
    assert torch.equal(rows[:, 0], rows[:, 1])


@pytest.mark.parametrize("mode", ["eco", "alpha-sample"])
@pytest.mark.parametrize(
    ("alpha", "kinds"),
    [
        (0.0, ("centroid_lr", "centroid")),
        (0.5, ("lr", "centroid_lr", "hr", "centroid")),
        (1.0, ("lr", "hr")),
    ],
)
def test_a_pair_of_weight_zero_is_not_read(mode: str, alpha: float, kinds: tuple[str, ...]) -> None:
    assert reads(mode, alpha) == kinds


def test_only_vanilla_does_without_a_teacher() -> None:
    assert [mode for mode in MODES if not needs_teacher(mode)] == ["vanilla"]


def test_unknown_mode() -> None:
    with pytest.raises(ValueError, match="ecco"):
        blends("ecco", [0.5], UNIFORM.unsqueeze(0))
