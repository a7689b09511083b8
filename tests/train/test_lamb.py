"""LAMB against its formula in float64."""

import numpy as np
import pytest
import torch

from eco_fast.train.lamb import Lamb

SHAPES = ((4, 3, 3, 3), (4,), (2, 5))


def tensors(seed: int, size: float = 1.0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [size * generator.standard_normal(shape) for shape in SHAPES]


def formula(weights, gradients, state, lr, betas=(0.9, 0.99), eps=1e-6, decay=0.0) -> None:
    """One update in place, by the paper's symbols."""
    for w, g, (m, v) in zip(weights, gradients, state, strict=True):
        m[...] = betas[0] * m + (1 - betas[0]) * g
        v[...] = betas[1] * v + (1 - betas[1]) * g**2
        u = m / (np.sqrt(v) + eps) + decay * w
        ours, theirs = min(np.linalg.norm(w), 10.0), np.linalg.norm(u)
        w -= lr * (ours / theirs if ours > 0 and theirs > 0 else 1.0) * u


@pytest.mark.parametrize(("size", "decay"), [(1.0, 0.0), (20.0, 0.0), (0.0, 0.0), (1.0, 0.1)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_twenty_updates(size: float, decay: float, dtype: torch.dtype, tolerance: float) -> None:
    """Weights below and above the clamp of the norm, and zero ones, where the ratio is 1."""
    expected = tensors(0, size)
    state = [(np.zeros(shape), np.zeros(shape)) for shape in SHAPES]
    weights = [torch.nn.Parameter(torch.from_numpy(w).to(dtype)) for w in expected]
    optimizer = Lamb(weights, weight_decay=decay)
    for step in range(20):
        rate = 1e-2 * (1 - step / 20)
        gradients = tensors(step + 1, 0.1)
        formula(expected, gradients, state, rate, decay=decay)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = torch.from_numpy(gradient).to(dtype)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    for weight, value in zip(weights, expected, strict=True):
        np.testing.assert_allclose(weight.detach().numpy(), value, rtol=tolerance, atol=tolerance)


def test_a_skipped_update_leaves_every_bit() -> None:
    weights = [torch.nn.Parameter(torch.from_numpy(w).float()) for w in tensors(0)]
    optimizer = Lamb(weights)

    def update(fill: float, skip: float) -> None:
        for weight in weights:
            weight.grad = torch.full_like(weight, fill)
        optimizer.found_inf = torch.tensor(skip)
        optimizer.step()

    update(0.5, 0.0)
    before = [t.clone() for w in weights for t in (w.detach(), *optimizer.state[w].values())]
    update(float("nan"), 1.0)
    after = [t for w in weights for t in (w.detach(), *optimizer.state[w].values())]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    update(0.5, 0.0)
    assert not torch.equal(weights[0].detach(), before[0])


def test_found_inf_does_not_change_an_accepted_update() -> None:
    results = []
    for found_inf in (None, torch.zeros(())):
        weights = [torch.nn.Parameter(torch.from_numpy(w).float()) for w in tensors(0)]
        optimizer = Lamb(weights)
        if found_inf is not None:
            optimizer.found_inf = found_inf
        for step in range(3):
            for weight, gradient in zip(weights, tensors(step), strict=True):
                weight.grad = torch.from_numpy(gradient).float()
            optimizer.step()
        results.append(weights)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
