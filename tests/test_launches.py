"""The count of launches: what is one, and what is not."""

from collections.abc import Callable

import pytest
import torch

pytest.importorskip("triton")
from launches import Count

X, WEIGHT, BIAS = torch.rand(2, 3, 8, 8), torch.rand(4, 3, 3, 3), torch.rand(4)
MANY = [torch.zeros(4) for _ in range(65)]


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (lambda: X.view(-1).unsqueeze(0)[:, 1:].t(), 0),
        (lambda: torch.empty(3), 0),
        (lambda: (X + 1).relu(), 2),
        (lambda: X.to(torch.bfloat16), 1),
        (lambda: torch.conv2d(X, WEIGHT), 1),
        (lambda: torch.conv2d(X, WEIGHT, BIAS), 2),
        (lambda: torch._foreach_copy_(MANY[:64], MANY[1:]), 1),
        (lambda: torch._foreach_copy_(MANY, MANY[::-1]), 2),
    ],
)
def test_operators(work: Callable[[], object], expected: int) -> None:
    count = Count()
    with count.part("work"):
        work()
    assert count.parts["work"] == expected


def test_gradients_of_a_convolution() -> None:
    """One for each of weight and bias; and the loss's sum with its gradient."""
    weight, bias = WEIGHT.clone().requires_grad_(), BIAS.clone().requires_grad_()
    y = torch.conv2d(X, weight, bias)
    count = Count()
    with count.part("backward"):
        y.backward(torch.ones(y.shape))
    assert count.parts["backward"] == 2 + 1  # ones
