"""The five modes as weights on the real and the centroid pair."""

import pytest
import torch

from eco_fast.eco.objective import MODES, blend, needs_teacher, reads

UNIFORM = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)


@pytest.mark.parametrize(
    ("mode", "weights"),
    [("vanilla", (1.0, 1.0)), ("kd", (1.0, 0.0)), ("eco-centroid", (0.0, 0.0)), ("eco", (0.25, 0.25))],
)
def test_weights_of_the_mixing_modes(mode: str, weights: tuple[float, float]) -> None:
    result = blend(mode, 0.25, UNIFORM)
    assert (result.input.item(), result.target.item()) == weights


def test_alpha_sample_draws_whole_samples() -> None:
    result = blend("alpha-sample", 0.5, UNIFORM)
    assert result.input.tolist() == [1.0, 0.0, 0.0]
    assert torch.equal(result.input, result.target)


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
    assert blend(mode, alpha, UNIFORM).reads == reads(mode, alpha) == kinds


def test_only_vanilla_does_without_a_teacher() -> None:
    assert [mode for mode in MODES if not needs_teacher(mode)] == ["vanilla"]


def test_unknown_mode() -> None:
    with pytest.raises(ValueError, match="ecco"):
        blend("ecco", 0.5, UNIFORM)
