"""The end of a network as one convolution equals its layers one by one."""

import pytest
import torch
from torch import nn

from eco_fast.models import build
from eco_fast.models.layers import RGB_RANGE
from eco_fast.models.tail import Tail

MEAN = torch.tensor([114.4, 111.5, 103.0])


def layer_by_layer(tail: Tail, features: torch.Tensor) -> torch.Tensor:
    return (nn.Sequential.forward(tail, features) + MEAN.view(1, 3, 1, 1)) / RGB_RANGE


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_it_equals_its_layers(scale: int) -> None:
    """The picture, and the gradients of the published weights."""
    torch.manual_seed(0)
    tail = Tail(scale, 8)
    features = torch.randn(2, 8, 5, 7).contiguous(memory_format=torch.channels_last).requires_grad_()
    tensors = [features, *tail.parameters()]
    ours, layers = tail(features, MEAN), layer_by_layer(tail, features)
    torch.testing.assert_close(ours, layers, rtol=0, atol=1e-6)
    grad = torch.randn_like(ours)
    for found, wanted in zip(
        torch.autograd.grad(ours, tensors, grad), torch.autograd.grad(layers, tensors, grad), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 5), (2, 2), (5, 1)])
def test_small_images_go_through_the_layers(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    tail = Tail(2, 4)
    features = torch.randn(1, 4, *size)
    assert torch.equal(tail(features, MEAN), layer_by_layer(tail, features))


def test_files_keep_the_published_names() -> None:
    names = {name for name in build("edsr-tiny", 4).state_dict() if name.startswith("tail")}
    assert names == {f"tail.{layer}.{kind}" for layer in ("0.0", "0.2", "1") for kind in ("weight", "bias")}


def test_it_compiles_to_one_graph() -> None:
    torch.manual_seed(0)
    network = build("edsr-tiny", 4, blocks=1, channels=8)
    x = torch.rand(1, 3, 8, 8)
    sr = torch.compile(network, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(sr, network(x))
    sr.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
