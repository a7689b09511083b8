"""`linear_tail`: convolutions with pixel shuffles between them, from features to a picture, at the cost of one.

What a network like EDSR has behind its last activation is linear: together it is one convolution on the grid of the
features. `chain` and `chain_kernel` make its kernels from the weights, `cpu` and `kernel` apply them.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from eco_kernels.checks import FLOATS, check_device, check_shape, check_tensor
from eco_kernels.dispatch import implementation

TAPS = 5
"""Side of the kernels on the grid of the features."""
LEAST_SIDE = TAPS // 2 + 1
"""Least height and width of features: below that the first and the last row or column are not independent."""


def linear_tail(features: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """3 x 3 convolutions (padding 1), a pixel shuffle behind each but the last, which makes RGB.

    They are applied as one 5 x 5 convolution to `3 scale^2` channels, where nothing of the picture's size is made but
    the picture. Its kernels, products of the weights, are others in the first and last row and column, where the
    convolutions see zeros outside: the result is exact there too. They are made anew in every call. (Training through
    collapsed linear layers: Bhardwaj et al., "Collapsible Linear Blocks for Super-Efficient Super Resolution", MLSys
    2022, whose edges differ.) Differentiable once, with respect to all tensors.

    Args:
        features: `(B, C, h, w)` float32, float16 or bfloat16; h and w at least 3.
        weights: float32 `(C_out, C_in, 3, 3)` in the order of the convolutions; with the shuffle's factor f, at
            least 2, `C_out` is f^2 times the next one's `C_in`, and the last one's is 3.
        biases: float32 `(C_out,)` each.

    Returns:
        float32 `(B, 3, scale h, scale w)`, channels_last; the scale is the product of the factors. Arithmetic
        is fp32, on tensor cores in parts that make up for it to 1e-5.

    Raises:
        TypeError: a dtype differs from the above.
        ValueError: a shape or device differs.
    """
    _check(features, weights, biases)
    picture: Tensor = _operator(features, weights, biases)[0]
    return picture


def scale_of(shapes: Sequence[Sequence[int]]) -> int:
    """Pixels of the picture per feature and side, from the shapes of the weights."""
    scale = 1
    for shape, following in pairwise(shapes):
        scale *= factor_of(shape, following)
    return scale


def factor_of(shape: Sequence[int], following: Sequence[int]) -> int:
    """The factor of the shuffle between two convolutions, from the shapes of their weights."""
    return isqrt(shape[0] // following[1])


def live_taps(behind: int) -> list[tuple[int, int]]:
    """Kind and tap along an axis of the kernels' taps that are not zero for all weights, by the shuffles `behind`.

    With none the kernel is that of the last convolution, for all pixels. What edges have besides reaches one place
    further with each, as a convolution before a shuffle sees less of what lies outside than the one behind it.
    """
    if not behind:
        return [(0, tap) for tap in range(3)]
    depth, reach = min(behind, TAPS // 2 + 1), TAPS // 2
    first = [(1, reach + place) for place in range(depth)]
    return [(0, tap) for tap in range(TAPS)] + first + [(2, reach - depth + 1 + place) for place in range(depth)]


@torch.library.custom_op("eco_kernels::linear_tail", mutates_args=())
def _operator(features: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The picture, and the kernels for the backward pass."""
    computed = implementation(__name__, features.device)
    scale = scale_of([weight.shape for weight in weights])
    with _unrounded(features.device.type):
        kernels, composed = computed.compose(weights, biases)
        return computed.convolve(features, kernels, composed, scale), kernels


@torch.library.custom_op("eco_kernels::linear_tail_backward", mutates_args=())
def _gradients(
    grad: Tensor, features: Tensor, kernels: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> list[Tensor]:
    """Of the features, the weights, the biases."""
    computed = implementation(__name__, features.device)
    scale = scale_of([weight.shape for weight in weights])
    with _unrounded(features.device.type):
        of_features, of_kernels, of_biases = computed.convolve_backward(grad, features, kernels, scale)
        return [of_features, *computed.compose_backward(of_kernels, of_biases, weights, biases)]


def _unrounded(device_type: str) -> AbstractContextManager[object]:
    """Without autocast, which would round in plain PyTorch."""
    available = torch.amp.is_autocast_available(device_type)
    return torch.autocast(device_type, enabled=False) if available else nullcontext()


@_operator.register_fake
def _empty(features: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    batch, channels, height, width = features.shape
    scale = scale_of([weight.shape for weight in weights])
    picture = features.new_empty((batch, height * scale, width * scale, 3), dtype=torch.float32)
    return picture.permute(0, 3, 1, 2), weights[0].new_empty((3, 3, 3 * scale**2, TAPS, TAPS, channels))


@_gradients.register_fake
def _empty_gradients(
    grad: Tensor, features: Tensor, kernels: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> list[Tensor]:
    inputs = (features, *weights)
    return [torch.empty_like(x, memory_format=torch.channels_last) for x in inputs] + [
        torch.empty_like(bias) for bias in biases
    ]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    features, weights, biases = inputs
    _, kernels = output
    ctx.mark_non_differentiable(kernels)
    ctx.save_for_backward(features, kernels, *weights, *biases)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    features, kernels, *both = ctx.saved_tensors
    count = len(both) // 2
    of_features, *gradients = _gradients(grad, features, kernels, both[:count], both[count:])
    return of_features, gradients[:count], gradients[count:]


_operator.register_autograd(_backward, setup_context=_keep)


def flops(features: Sequence[int], weights: Sequence[Sequence[int]], *_: Any, **__: Any) -> int:
    """FLOPs of the one convolution, a product and a sum counted as two; its kernels' are left out.

    Args:
        features, weights: Shapes of the arguments of `linear_tail`.
    """
    batch, channels, height, width = features
    return 2 * batch * height * width * channels * TAPS**2 * 3 * scale_of(weights) ** 2


def _check(features: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
    check_tensor("features", features, 4, FLOATS)
    if min(features.shape[2:]) < LEAST_SIDE:
        raise ValueError(f"features have shape {tuple(features.shape)}; both sides must be at least {LEAST_SIDE}")
    if len(weights) < 2 or len(weights) != len(biases):
        raise ValueError(f"there are {len(weights)} weights and {len(biases)} biases; there must be 2 or more of both")
    channels = features.shape[1]
    for number, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        check_tensor(f"weights[{number}]", weight, 4, (torch.float32,))
        check_tensor(f"biases[{number}]", bias, 1, (torch.float32,))
        last = number == len(weights) - 1
        outputs = 3 if last else weights[number + 1].shape[1]
        factor = 1 if last else max(2, round((weight.shape[0] / outputs) ** 0.5))
        check_shape(f"weights[{number}]", weight, (factor**2 * outputs, channels, 3, 3))
        check_shape(f"biases[{number}]", bias, weight.shape[:1])
        for tensor in (weight, bias):
            check_device(f"weights[{number}] or its bias", tensor, features.device)
        channels = outputs
