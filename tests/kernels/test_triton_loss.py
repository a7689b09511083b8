"""The loss kernel against the float64 truth, in Triton's interpreter."""

import pytest
import torch
from torch import Tensor

from eco_kernels import eco_loss, eco_loss_with_grad, reference
from eco_kernels.loss import KINDS

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("nchw", "channels_last")
TARGETS = ((torch.uint8, torch.uint8), (torch.uint8, torch.bfloat16), (torch.float32, torch.uint8))
TARGETS += ((torch.uint8, None), (None, torch.float16))
"""Types of hr and centroid."""


def images(shape: tuple[int, ...], dtype: torch.dtype, layout: str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.uint8:
        x = torch.randint(0, 256, shape, generator=generator, dtype=dtype)
    else:
        x = torch.rand(shape, generator=generator).to(dtype)
    return x.contiguous(memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format)


@pytest.mark.grid(
    kind=tuple(KINDS),
    dtype=DTYPES,
    targets=TARGETS,
    layouts=tuple((first, second) for first in LAYOUTS for second in LAYOUTS),
    shape=((1, 3, 7, 9), (5, 1, 16, 12), (5, 3, 24, 40)),
    per_sample=(False, True),
)
def test_loss_and_gradient(kind, dtype, targets, layouts, shape, per_sample, fences) -> None:
    sr = fences.copy(images(shape, dtype, layouts[0], seed=1))
    hr, centroid = (None if t is None else images(shape, t, layouts[1], seed=2 + i) for i, t in enumerate(targets))
    alpha = torch.rand(shape[0], generator=torch.Generator().manual_seed(4)) if per_sample else torch.tensor(0.3)
    weights = torch.arange(1.0, shape[0] + 1) / 3 if per_sample else None
    scale = torch.tensor(255.0) if per_sample else 255.0
    loss, grad = eco_loss_with_grad(sr, hr, centroid, alpha, kind=kind, scale_factor=scale, weights=weights)
    expected, slope = reference.eco_loss_with_grad(
        sr, hr, centroid, alpha, kind=kind, scale_factor=scale, weights=weights
    )
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    assert (grad.dtype, grad.stride()) == (sr.dtype, sr.stride())
    # The scaled difference has an error of its own, which the slope passes on by its steepness; l1 jumps at a tie.
    weight = 1.0 if weights is None else float(weights.max())
    difference_error = 255 * 2e-7
    steepness = {"l1": 0, "l2": 2, "charbonnier": 1 / 1e-3}[kind]
    room = steepness * difference_error * 255 * weight / sr.numel()
    bound = slope.abs() * (torch.finfo(dtype).eps / 2 + 3e-7) + room
    _, twice = reference.eco_loss_with_grad(sr, hr, centroid, alpha, kind="l2")
    apart = (twice.abs() * sr.numel() / 2 > 2e-7) | (kind != "l1")
    assert ((grad.double() - slope).abs() <= bound)[apart].all()
    assert apart.double().mean() > 0.99


@pytest.mark.parametrize("dtype", DTYPES)
def test_l1_gradients_have_one_magnitude_rounded_once_and_none_at_ties(dtype: torch.dtype) -> None:
    hr = images((2, 3, 16, 16), torch.uint8, "channels_last", seed=0)
    sr = (hr.float() / 255).to(dtype)
    sr[0] += 0.25
    _, grad = eco_loss_with_grad(sr, sr.clone(), None, None, scale_factor=255.0)
    assert (grad == 0).all()
    _, grad = eco_loss_with_grad(sr, torch.zeros_like(hr), None, None, scale_factor=255.0)
    step = (torch.tensor(255.0) / sr.numel()).to(dtype)
    assert set(grad.unique().tolist()) == {0.0, step.item()}
    assert step.item() > torch.finfo(dtype).smallest_normal


def test_the_fp16_gradient_of_a_usual_batch_is_not_subnormal() -> None:
    sr = torch.ones((16, 3, 192, 192), dtype=torch.float16)
    _, grad = eco_loss_with_grad(sr, torch.zeros((16, 3, 192, 192), dtype=torch.uint8), None, None, scale_factor=255.0)
    assert (grad == (torch.tensor(255.0) / sr.numel()).half()).all()
    assert grad[0, 0, 0, 0].item() > torch.finfo(torch.float16).smallest_normal


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_end_points_equal_the_lone_target(alpha: float) -> None:
    sr = images((2, 3, 10, 10), torch.float32, "channels_last", seed=0)
    hr, centroid = (images((2, 3, 10, 10), torch.uint8, "channels_last", seed=s) for s in (1, 2))
    both = eco_loss_with_grad(sr, hr, centroid, torch.tensor(alpha))
    lone = eco_loss_with_grad(sr, hr if alpha else None, None if alpha else centroid, None)
    assert torch.equal(both[0], lone[0]) and torch.equal(both[1], lone[1])


def test_hundred_repeats_give_the_same_bits() -> None:
    sr = images((3, 3, 20, 20), torch.bfloat16, "channels_last", seed=0)
    hr, centroid = (images((3, 3, 20, 20), torch.uint8, "channels_last", seed=s) for s in (1, 2))
    first = eco_loss_with_grad(sr, hr, centroid, torch.tensor(0.4), scale_factor=255.0)
    for _ in range(100):
        loss, grad = eco_loss_with_grad(sr, hr, centroid, torch.tensor(0.4), scale_factor=255.0)
        assert torch.equal(loss, first[0]) and torch.equal(grad, first[1])


@pytest.mark.parametrize("kind", KINDS)
def test_autograd_with_an_upstream_gradient_against_float64(kind: str) -> None:
    """The reference in float64 through autograd's own rules, the kernel through its operator."""
    sr = images((3, 3, 9, 7), torch.float32, "channels_last", seed=0)
    hr, centroid = (images((3, 3, 9, 7), torch.uint8, "channels_last", seed=s) for s in (1, 2))
    alpha, weights = torch.tensor([0.0, 0.4, 1.0]), torch.tensor([1.0, 0.5, 2.0])
    options = {"kind": kind, "weights": weights, "scale_factor": 3.0}
    ours, truth = sr.clone().requires_grad_(), sr.double().requires_grad_()
    (eco_loss(ours * 1, hr, centroid, alpha, **options) * -2.5).backward()
    (reference.eco_loss(truth, hr, centroid, alpha, **options) * -2.5).backward()
    torch.testing.assert_close(ours.grad.double(), truth.grad, rtol=1e-6, atol=2.5e-4 / sr.numel())


def test_alpha_and_weights_that_are_not_dense() -> None:
    sr = images((3, 3, 9, 7), torch.float32, "channels_last", seed=0)
    hr, centroid = (images((3, 3, 9, 7), torch.uint8, "channels_last", seed=s) for s in (1, 2))
    alpha, weights = torch.tensor([0.0, 0.4, 1.0]), torch.tensor([1.0, 0.5, 2.0])
    apart = [torch.stack((t, t + 1), 1)[:, 0] for t in (alpha, weights)]
    dense = eco_loss_with_grad(sr, hr, centroid, alpha, weights=weights)
    spread = eco_loss_with_grad(sr, hr, centroid, apart[0], weights=apart[1])
    assert all(torch.equal(a, b) for a, b in zip(dense, spread, strict=True))


def test_a_sample_too_large_is_refused() -> None:
    sr = torch.zeros(()).expand(1, 3, 30_000, 30_000)
    with pytest.raises(ValueError, match=r"\(3, 30000, 30000\)"):
        eco_loss_with_grad(sr, sr, None, None)


def test_nan_is_passed_on() -> None:
    sr = images((1, 3, 8, 8), torch.float32, "nchw", seed=0)
    sr[0, 0, 0, 0] = torch.nan
    loss, _ = eco_loss_with_grad(sr, images((1, 3, 8, 8), torch.uint8, "nchw", seed=1), None, None, scale_factor=255.0)
    assert loss.isnan()
