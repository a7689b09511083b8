"""The registered operators: PyTorch's own checks of them, and graphs that hold them."""

from collections.abc import Callable
from inspect import isfunction
from shutil import which
from typing import Any

import pytest
import torch
from torch import Tensor

import eco_kernels

GENERATOR = torch.Generator().manual_seed(0)


def bytes_(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=GENERATOR, dtype=torch.uint8)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR)


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


STORE, OTHER = bytes_(24 * 31 * 3), bytes_(24 * 31 * 3)
PLACES = (torch.tensor([0]), torch.tensor([31]), *(torch.tensor(at) for at in ([0, 0], [3, 9], [2, 20], [1, 6])))
ALPHA = torch.tensor(0.3)
CENTROID, LR = channels_last(bytes_(2, 3, 20, 24)), channels_last(bytes_(2, 3, 10, 12))
CORNER = torch.tensor([1, 3])
FEATURES = channels_last(random(2, 5, 4, 6))
SR, HR = channels_last(torch.rand((2, 3, 8, 10), generator=GENERATOR)), bytes_(2, 3, 8, 10)

CALLS: dict[str, list[tuple[tuple, dict[str, Any]]]] = {
    "gather_patches": [((STORE, *PLACES, 6), {}), ((STORE, *PLACES, 6), {"channels": 1})],
    "gather_mix": [
        ((STORE, OTHER, *PLACES, 6, ALPHA), {}),
        ((STORE, OTHER, *PLACES, 6, torch.tensor([0.0, 1.0]), torch.bfloat16), {}),
    ],
    "bicubic_downsample": [
        ((CENTROID, 2), {}),
        ((CENTROID.contiguous(), 4), {"border": "replicate"}),
        ((CENTROID / 255, 2), {"rounding": "none"}),
        ((CENTROID[:, :1].half() / 255, 2), {}),
    ],
    "downsample_mix": [
        ((CENTROID, LR, ALPHA, 2), {}),
        (
            (CENTROID.contiguous(), LR, ALPHA.expand(2), 2, CORNER, CORNER, 6, CORNER),
            {"rounding": "none", "border": "replicate", "dtype": torch.bfloat16},
        ),
    ],
    "linear_tail": [
        ((FEATURES, [random(20, 5, 3, 3), random(3, 5, 3, 3)], [random(20), random(3)]), {}),
        (
            (
                FEATURES.bfloat16(),
                [random(20, 5, 3, 3), random(8, 5, 3, 3), random(3, 2, 3, 3)],
                [random(20), random(8), random(3)],
            ),
            {},
        ),
    ],
    "eco_loss_with_grad": [
        ((SR, HR, HR.flip(0), ALPHA), {"kind": "charbonnier", "scale_factor": 255.0}),
        ((SR.bfloat16(), HR, None, None), {"scale_factor": torch.tensor(3.0)}),
        ((SR.contiguous(), None, HR, None), {"weights": torch.tensor([1.0, 0.5])}),
    ],
}
CASES = [pytest.param(name, *call, id=f"{name}-{i}") for name, calls in CALLS.items() for i, call in enumerate(calls)]


def operator_arguments(name: str, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """What the operator of a public function takes."""
    if name != "eco_loss_with_grad":
        return args, kwargs
    factor = torch.as_tensor(kwargs.get("scale_factor", 1.0))
    return (*args, kwargs.get("kind", "l1"), factor, kwargs.get("weights")), {}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "args", "kwargs"), CASES)
def test_opcheck(name: str, args: tuple, kwargs: dict[str, Any]) -> None:
    """Schema, fake kernel, autograd registration, and tracing with dynamic shapes."""
    args, kwargs = operator_arguments(name, args, kwargs)
    torch.library.opcheck(getattr(torch.ops.eco_kernels, name).default, args, kwargs)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["l1", "l2", "charbonnier"])
def test_opcheck_with_a_gradient(kind: str) -> None:
    arguments = (SR.clone().requires_grad_(), HR, HR.flip(0), ALPHA, kind, torch.tensor(255.0), None)
    torch.library.opcheck(torch.ops.eco_kernels.eco_loss_with_grad.default, arguments)


def nodes_and_results(function: Callable, *args: Any, **kwargs: Any) -> tuple[list[str], Any]:
    """The operators of the one graph of a call, and what it gives."""
    found: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable:
        found.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    torch.compiler.reset()
    return found, torch.compile(function, fullgraph=True, backend=backend)(*args, **kwargs)


@pytest.mark.parametrize(("name", "args", "kwargs"), CASES)
def test_a_call_is_one_node_and_gives_eagers_result(name: str, args: tuple, kwargs: dict[str, Any]) -> None:
    function = getattr(eco_kernels, name)
    nodes, result = nodes_and_results(function, *args, **kwargs)
    assert [node for node in nodes if "eco_kernels" in node] == [f"eco_kernels.{name}.default"]
    expected = function(*args, **kwargs)
    for ours, theirs in zip(*([x] if isinstance(x, Tensor) else x for x in (result, expected)), strict=True):
        assert torch.equal(ours, theirs)
        assert (ours.dtype, ours.stride()) == (theirs.dtype, theirs.stride())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["l1", "charbonnier"])
def test_a_compiled_training_step_gives_eagers_gradients(kind: str) -> None:
    """Downsample, blend, network and loss in one graph through Inductor."""
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 3, 3, padding=1)

    def loss(hr: Tensor, centroid: Tensor, alpha: Tensor) -> Tensor:
        x = eco_kernels.downsample_mix(centroid, eco_kernels.bicubic_downsample(hr, 2), alpha, 2)
        sr = torch.nn.functional.interpolate(network(x), scale_factor=2.0)
        return eco_kernels.eco_loss(sr, hr, centroid, alpha, kind=kind, scale_factor=255.0) * 0.5

    def gradients(function: Callable) -> list[Tensor]:
        value = function(CENTROID, CENTROID.flip(0), ALPHA)
        return [value.detach(), *torch.autograd.grad(value, list(network.parameters()))]

    torch.compiler.reset()
    for ours, theirs in zip(
        gradients(torch.compile(loss, fullgraph=True, backend="inductor" if which("c++") else "aot_eager")),
        gradients(loss),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_gradient_is_a_constant() -> None:
    """It cannot be derived again: a loss of it would have no derivative, instead of a wrong one."""
    sr = SR.clone().requires_grad_()
    loss, grad = torch.ops.eco_kernels.eco_loss_with_grad(sr, HR, None, None, "l2", torch.tensor(1.0), None)
    assert loss.requires_grad
    assert not grad.requires_grad
    (first,) = torch.autograd.grad(loss, sr, create_graph=True)
    assert not first.requires_grad


def test_operators_check_their_arguments() -> None:
    with pytest.raises(ValueError, match="scale is 5"):
        torch.ops.eco_kernels.bicubic_downsample(CENTROID, 5)


def test_every_public_function_is_an_operator() -> None:
    public = {name for name in eco_kernels.__all__ if isfunction(getattr(eco_kernels, name))}
    # `eco_loss` is the first result of `eco_loss_with_grad`; an update, in place, is no part of a network's graph.
    names = {name for name in public if not name.endswith("_update")} - {"eco_loss", "first_blocks"}
    assert names == CALLS.keys()
    assert all(hasattr(torch.ops.eco_kernels, name) for name in names)
