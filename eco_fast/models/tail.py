"""The end of a network: from features to the picture, computed as one convolution where that gives the same."""

import torch
from torch import Tensor, nn

from eco_fast.models.layers import RGB_RANGE, FloatConv3x3, upsampler
from eco_kernels import linear_tail
from eco_kernels.tail import LEAST_SIDE


class Tail(nn.Sequential):
    """Sub-pixel upsampling and the last convolution, under the published names; in float32 also under autocast.

    The output is the picture, where the 8 bits of bfloat16 would show as banding (near 1.0 they step by 1/256).
    """

    def __init__(self, scale: int, channels: int) -> None:
        super().__init__(upsampler(scale, channels), FloatConv3x3(channels, 3))

    def forward(self, features: Tensor, mean: Tensor) -> Tensor:  # type: ignore[override]
        """The picture.

        Args:
            features: (B, channels, h, w), any float type.
            mean: (3,), added to the colours on the scale of 0 to 255.

        Returns:
            (B, 3, scale h, scale w) float32, about [0, 1] and not clamped.
        """
        too_small = min(features.shape[2:]) < LEAST_SIDE
        if too_small or torch.compiler.is_exporting():  # files for other programs hold the layers
            return (super().forward(features) + mean.view(1, 3, 1, 1)) / RGB_RANGE
        convolutions = [layer for layer in self.modules() if isinstance(layer, nn.Conv2d)]
        weights = [layer.weight for layer in convolutions]
        biases = [layer.bias for layer in convolutions if layer.bias is not None]
        weights[-1], biases[-1] = weights[-1] / RGB_RANGE, (biases[-1] + mean) / RGB_RANGE
        with torch.autocast(features.device.type, enabled=False):
            return linear_tail(features, weights, biases)
