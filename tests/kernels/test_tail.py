"""`linear_tail` against its layers one by one in float64: picture, gradients, edges, checks."""

import pytest
import torch
from torch import Tensor

from eco_kernels import linear_tail, reference

# channels of the features and of the maps behind the shuffles, factors, batch, height, width: least sides, odd ones.
CASES = (
    ((5, 5), (2,), 2, 3, 3),
    ((8, 4), (3,), 1, 4, 9),
    ((8, 6, 4), (2, 2), 2, 3, 7),
    ((16, 16, 16), (2, 2), 1, 12, 5),
    ((4, 4, 4), (3, 2), 1, 5, 4),
    ((4, 4, 4, 4), (2, 2, 2), 1, 3, 4),
)


def problem(
    case: tuple[tuple[int, ...], tuple[int, ...], int, int, int], dtype: torch.dtype = torch.float32
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    channels, factors, batch, height, width = case
    generator = torch.Generator().manual_seed(0)
    outputs = [*(factor**2 * after for factor, after in zip(factors, channels[1:], strict=True)), 3]
    weights = [
        torch.randn(out, into, 3, 3, generator=generator) / (3 * into**0.5)
        for out, into in zip(outputs, channels, strict=True)
    ]
    biases = [torch.randn(out, generator=generator) for out in outputs]
    features = torch.randn(batch, channels[0], height, width, generator=generator).to(dtype)
    return features.contiguous(memory_format=torch.channels_last), weights, biases


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_truth(case: tuple[tuple[int, ...], tuple[int, ...], int, int, int], dtype: torch.dtype) -> None:
    """Every pixel, those at the edges too, and every gradient."""
    features, weights, biases = problem(case, dtype)
    inputs = [tensor.requires_grad_() for tensor in (features, *weights, *biases)]
    picture, expected = linear_tail(features, weights, biases), reference.linear_tail(features, weights, biases)
    assert picture.dtype == torch.float32 and picture.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(picture.double(), expected, rtol=1e-5, atol=1e-5)
    grad = torch.randn(picture.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad(picture, inputs, grad)
    wanted = torch.autograd.grad(expected, inputs, grad.double())
    for ours, truth, tensor in zip(found, wanted, inputs, strict=True):
        assert ours.dtype == tensor.dtype and ours.shape == tensor.shape
        tolerance = {"rtol": 1e-4, "atol": 1e-4} if tensor.dtype == torch.float32 else {}
        torch.testing.assert_close(ours, truth, **tolerance)


def test_any_layout() -> None:
    features, weights, biases = problem(CASES[3])
    dense = linear_tail(features, weights, biases)
    assert torch.equal(dense, linear_tail(features.contiguous(), weights, biases))
    last = [weight.contiguous(memory_format=torch.channels_last) for weight in weights]
    assert torch.equal(dense, linear_tail(features, last, biases))


def test_gradients_of_weights_are_channels_last() -> None:
    """As compiled code takes them to be, whatever the layout of the weights."""
    for case in CASES:
        features, weights, biases = problem(case)
        inputs = [tensor.requires_grad_() for tensor in (features, *weights)]
        assert all(weight.is_contiguous() for weight in weights)
        found = torch.autograd.grad(linear_tail(features, weights, biases).sum(), inputs)
        assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in found)


def test_autocast_rounds_nothing() -> None:
    features, weights, biases = problem(CASES[3])
    inputs = [tensor.requires_grad_() for tensor in (features, *weights, *biases)]
    plain = linear_tail(features, weights, biases)
    with torch.autocast("cpu", torch.bfloat16):
        ours = linear_tail(features, weights, biases)
        found = torch.autograd.grad(ours, inputs, torch.ones_like(ours))
    assert torch.equal(ours, plain)
    expected = torch.autograd.grad(plain, inputs, torch.ones_like(plain))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("case", CASES[:3])
def test_it_is_an_operator(case: tuple[tuple[int, ...], tuple[int, ...], int, int, int]) -> None:
    features, weights, biases = problem(case)
    for tensor in (features, *weights, *biases):
        tensor.requires_grad_()
    torch.library.opcheck(torch.ops.eco_kernels.linear_tail.default, (features, weights, biases))


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        ({"features": torch.zeros(1, 5, 2, 9)}, ValueError, "at least 3"),
        ({"features": torch.zeros(1, 5, 3, 3, dtype=torch.uint8)}, TypeError, "features"),
        ({"features": torch.zeros(1, 4, 3, 3)}, ValueError, r"weights\[0\]"),
        ({"weights": [torch.zeros(20, 5, 3, 3), torch.zeros(4, 5, 3, 3)]}, ValueError, r"weights\[1\]"),
        ({"weights": [torch.zeros(5, 5, 3, 3), torch.zeros(3, 5, 3, 3)]}, ValueError, r"weights\[0\]"),
        ({"weights": [torch.zeros(19, 5, 3, 3), torch.zeros(3, 5, 3, 3)]}, ValueError, r"weights\[0\]"),
        ({"biases": [torch.zeros(20), torch.zeros(3, dtype=torch.float64)]}, TypeError, r"biases\[1\]"),
        ({"biases": [torch.zeros(20)]}, ValueError, "2 weights and 1 biases"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, object], error: type[Exception], named: str) -> None:
    arguments = dict(zip(("features", "weights", "biases"), problem(CASES[0]), strict=True))
    with pytest.raises(error, match=named):
        linear_tail(**(arguments | change))  # type: ignore[arg-type]
