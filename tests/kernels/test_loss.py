"""The loss and its gradient against float64, by hand and by autograd."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from eco_kernels import eco_loss, eco_loss_with_grad, reference

KINDS = ("l1", "l2", "charbonnier")


def batch(dtype: torch.dtype = torch.float32, size: int = 12, samples: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """sr of `dtype`, hr and centroid uint8, channels_last."""
    generator = torch.Generator().manual_seed(0)
    shape = (samples, size, size + 3, 3)
    hr, centroid = (torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8) for _ in range(2))
    sr = (torch.rand(shape, generator=generator) * 1.2 - 0.1).to(dtype)
    return sr.permute(0, 3, 1, 2), hr.permute(0, 3, 1, 2), centroid.permute(0, 3, 1, 2)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_l1_against_numpy(alpha: float) -> None:
    sr, hr, centroid = batch()
    loss, grad = eco_loss_with_grad(sr, hr, centroid, torch.tensor(alpha), scale_factor=255.0)
    target = (alpha * hr.numpy().astype(np.float64) + (1 - alpha) * centroid.numpy()) / 255
    difference = 255 * (sr.numpy().astype(np.float64) - target)
    np.testing.assert_allclose(loss.item(), np.abs(difference).mean(), rtol=1e-6)
    np.testing.assert_allclose(grad.numpy(), np.sign(difference) * 255 / difference.size, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_against_reference(kind: str, dtype: torch.dtype) -> None:
    """Every kind of target, alpha, weights and scale factor; images uint8 and float, layouts alike and not."""
    sr, hr, centroid = batch(dtype)
    alphas = (torch.tensor(0.25), torch.tensor([0.0, 1.0, 0.5, 0.9]))
    targets = ((hr, centroid), (hr, None), (None, centroid), (hr.to(dtype) / 255, centroid.contiguous()))
    weights = (None, torch.tensor([1.0, 0.0, 2.0, 0.5]))
    factors = (1.0, 255.0, torch.tensor(1024.0))
    grad_rounding = torch.finfo(dtype).eps
    for target, alpha, weight, factor in itertools.product(targets, alphas, weights, factors):
        options = {"kind": kind, "scale_factor": factor, "weights": weight}
        loss, grad = eco_loss_with_grad(sr, *target, alpha, **options)
        expected_loss, expected_grad = reference.eco_loss_with_grad(sr, *target, alpha, **options)
        assert loss.dtype == torch.float32
        assert loss.ndim == 0
        assert grad.dtype == dtype
        torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-6, atol=1e-6)
        # A difference in fp32 is off by 1e-7, which a steep Charbonnier turns into up to 1e-7 factor / eps of a sign.
        steep = expected_grad.abs().max().item() * (1e-4 if kind == "charbonnier" else 1e-6)
        tiny = torch.finfo(dtype).smallest_normal * grad_rounding
        torch.testing.assert_close(grad.double(), expected_grad, rtol=grad_rounding, atol=steep + tiny)


@pytest.mark.parametrize("kind", KINDS)
def test_hand_gradient_is_autograds(kind: str) -> None:
    """The reference's gradient by hand is that of its loss, so comparing with it is enough."""
    sr, hr, centroid = batch()
    sr = sr.double().requires_grad_()
    options = {"kind": kind, "scale_factor": 3.0, "weights": torch.tensor([1.0, 0.0, 2.0, 0.5])}
    alpha = torch.tensor([0.0, 0.3, 0.6, 1.0])
    reference.eco_loss(sr, hr, centroid, alpha, **options).backward()
    torch.testing.assert_close(sr.grad, reference.eco_loss_with_grad(sr, hr, centroid, alpha, **options)[1])


@pytest.mark.parametrize("kind", KINDS)
def test_autograd_with_an_upstream_gradient(kind: str) -> None:
    sr, hr, centroid = batch()
    leaf = sr.clone().requires_grad_()
    loss = eco_loss(leaf * 1, hr, centroid, torch.tensor(0.4), kind=kind)
    (loss * -2.5).backward()
    expected, grad = eco_loss_with_grad(sr, hr, centroid, torch.tensor(0.4), kind=kind)
    assert torch.equal(loss.detach(), expected)
    torch.testing.assert_close(leaf.grad, grad * -2.5)


def test_only_sr_gets_a_gradient() -> None:
    sr, hr, centroid = batch()
    hr = (hr.float() / 255).requires_grad_()
    alpha = torch.tensor(0.4, requires_grad=True)
    sr.requires_grad_()
    eco_loss(sr, hr, centroid, alpha).backward()
    assert hr.grad is None
    assert alpha.grad is None
    assert not any(result.requires_grad for result in eco_loss_with_grad(sr, hr, centroid, alpha))
    assert not eco_loss(sr.detach(), hr.detach(), centroid, alpha.detach()).requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_ties_have_no_gradient(kind: str) -> None:
    _, hr, centroid = batch()
    for alpha, target in ((1.0, hr), (0.0, centroid)):
        loss, grad = eco_loss_with_grad(target.float() / 255, hr, centroid, torch.tensor(alpha), kind=kind)
        assert not grad.any()
        assert loss.item() == pytest.approx(1e-3 if kind == "charbonnier" else 0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_keeps_layout(dtype: torch.dtype, layout: torch.memory_format) -> None:
    sr, hr, centroid = batch(dtype)
    sr = sr.contiguous(memory_format=layout)
    _, grad = eco_loss_with_grad(sr, hr, centroid, torch.tensor(0.5))
    assert grad.stride() == sr.stride()


def test_weights_pick_samples() -> None:
    """Weight 1 on some samples and 0 on others: the mean still counts every element."""
    sr, hr, _ = batch()
    loss, grad = eco_loss_with_grad(sr, hr, None, None, weights=torch.tensor([1.0, 0.0, 0.0, 1.0]))
    parts = [eco_loss_with_grad(sr[k : k + 1], hr[k : k + 1], None, None)[0] for k in (0, 3)]
    torch.testing.assert_close(loss, (parts[0] + parts[1]) / 4)
    assert not grad[1:3].any()


@pytest.mark.parametrize("kind", KINDS)
def test_nan_reaches_the_loss(kind: str) -> None:
    """A guard sees it there; the gradient of l1 is 0 at a NaN, as PyTorch's own is, and a NaN for the other kinds."""
    sr, hr, _ = batch()
    sr[1, 0, 0, 0] = float("nan")
    loss, grad = eco_loss_with_grad(sr, hr, None, None, kind=kind)
    assert loss.isnan()
    assert grad.isnan().sum() == (0 if kind == "l1" else 1)


@pytest.mark.parametrize("samples", [1, 3, 16])
def test_chunks_and_repeats(samples: int) -> None:
    """Batches of more than one chunk, uneven ones included: right, and the same bits every time."""
    sr, hr, centroid = batch(size=120, samples=samples)
    arguments = (sr, hr, centroid, torch.tensor(0.3))
    loss, grad = eco_loss_with_grad(*arguments)
    expected_loss, expected_grad = reference.eco_loss_with_grad(*arguments)
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad.double(), expected_grad, rtol=1e-6, atol=0)
    for _ in range(3):
        again = eco_loss_with_grad(*arguments)
        assert torch.equal(again[0], loss)
        assert torch.equal(again[1], grad)


SR, HR, CENTROID = batch()


@pytest.mark.parametrize("function", [eco_loss, eco_loss_with_grad])
@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"sr": SR.double()}, TypeError, "sr has dtype torch.float64"),
        ({"sr": HR}, TypeError, "sr has dtype torch.uint8"),
        ({"sr": SR[0]}, ValueError, "4 dimensions"),
        ({"hr": HR[:2]}, ValueError, r"hr has shape \(2, 3, 12, 15\)"),
        ({"hr": HR.long()}, TypeError, "hr has dtype torch.int64"),
        ({"centroid": CENTROID.to("meta")}, ValueError, "centroid is on meta"),
        ({"hr": None, "centroid": None}, ValueError, "both None"),
        ({"alpha": None}, TypeError, "alpha is a NoneType"),
        ({"alpha": torch.zeros(4, 1)}, ValueError, r"\(4, 1\)"),
        ({"kind": "huber"}, ValueError, "'huber'"),
        ({"weights": torch.tensor(1.0)}, ValueError, r"weights has shape \(\)"),
        ({"weights": [1.0] * 4}, TypeError, "weights is a list"),
        ({"scale_factor": torch.ones(2)}, ValueError, r"scale_factor has shape \(2,\)"),
        ({"scale_factor": "255"}, TypeError, "scale_factor is a str"),
    ],
)
def test_errors(function: object, changed: dict, error: type[Exception], words: str) -> None:
    arguments = {"sr": SR, "hr": HR, "centroid": CENTROID, "alpha": torch.tensor(0.5)}
    with pytest.raises(error, match=words):
        function(**(arguments | changed))
