"""The truth about the tail: its layers one by one, in float64, differentiable by PyTorch's autograd."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from eco_kernels.tail import factor_of


def linear_tail(features: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """The picture in float64."""
    x = features.double()
    for number, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = F.conv2d(x, weight.double(), bias.double(), padding=1)
        if number + 1 < len(weights):
            x = F.pixel_shuffle(x, factor_of(weight.shape, weights[number + 1].shape))
    return x
