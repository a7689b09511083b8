"""Layers that several networks share."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 3 x 3 convolution that keeps the size; torch's default initialisation."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)


class FloatConv3x3(nn.Conv2d):
    """The last convolution of a network: float32 also under autocast.

    Its output is the picture, where the 8 bits of bfloat16 would show as banding (near 1.0 they step by 1/256).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in_channels, h, w), any float type -> (B, out_channels, h, w) float32."""
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(x.float(), self.weight, self.bias, padding=1)
