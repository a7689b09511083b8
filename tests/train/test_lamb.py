"""LAMB against its formula in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from eco_fast.config import OptimConfig
from eco_fast.train.optim import make_optimizer
from eco_fast.train.parameters import Parameters
from eco_kernels import Judgement, judge_update

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
def test_twenty_updates(size: float, decay: float) -> None:
    """Weights below and above the clamp of the norm, and zero ones, where the ratio is 1."""
    expected = tensors(0, size)
    moments = [(np.zeros(shape), np.zeros(shape)) for shape in SHAPES]
    network = nn.Module()
    network.weights = nn.ParameterList(nn.Parameter(torch.from_numpy(w).float()) for w in expected)
    parameters, state = Parameters(network, average=False, precision="fp32"), Judgement.fresh()
    config = OptimConfig(name="lamb", betas=(0.9, 0.99), eps=1e-6, weight_decay=decay)
    optimizer = make_optimizer(parameters, state, config)
    for step in range(20):
        rate = 1e-2 * (1 - step / 20)
        gradients = tensors(step + 1, 0.1)
        formula(expected, gradients, moments, rate, decay=decay)
        for view, gradient in zip(parameters.gradient_views, gradients, strict=True):
            view.copy_(torch.from_numpy(gradient))
        judge_update(parameters.gradients, torch.tensor(1.0), state)
        optimizer.step(rate, 0.0)
    for weight, value in zip(network.weights, expected, strict=True):
        np.testing.assert_allclose(weight.detach().numpy(), value, rtol=1e-5, atol=1e-5)
