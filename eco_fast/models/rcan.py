"""RCAN (Zhang et al., "Image Super-Resolution Using Very Deep Residual Channel Attention Networks", ECCV 2018).

Parameters carry the names of the published files, so those load without renaming.
"""

import torch
from torch import Tensor, nn

from eco_fast.models.layers import RGB_RANGE, MeanShift, conv3x3
from eco_fast.models.tail import Tail

_REDUCTION = 16  # channels per channel of the attention's bottleneck


class ChannelAttention(nn.Module):
    """A weight in (0, 1) for every channel, from the means of all channels over the whole image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // _REDUCTION)
        self.conv_du = nn.Sequential(
            nn.Conv2d(channels, inner, 1), nn.ReLU(inplace=True), nn.Conv2d(inner, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (B, channels, h, w) -> (B, channels, 1, 1)."""
        return self.conv_du(x.mean((2, 3), keepdim=True))


class AttentionBlock(nn.Module):
    """x + attention * conv(relu(conv(x)))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv3x3(channels, channels), nn.ReLU(inplace=True), conv3x3(channels, channels), ChannelAttention(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (B, channels, h, w) -> the same shape."""
        first, relu, second, attention = self.body
        features = second(relu(first(x)))
        return torch.addcmul(x, features, attention(features))  # one pass, rounded once under autocast


class ResidualGroup(nn.Module):
    """x + conv(blocks(x))."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*(AttentionBlock(channels) for _ in range(blocks)), conv3x3(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, channels, h, w) -> the same shape."""
        return x + self.body(x)


class RCAN(nn.Module):
    """RCAN with `groups` residual groups of `blocks` attention blocks each.

    The attention averages over the whole image: a tile of an image does not give exactly what the image gives there.
    """

    def __init__(self, scale: int, *, groups: int, blocks: int, channels: int) -> None:
        super().__init__()
        self.scale = scale
        self.sub_mean = MeanShift(-1)
        self.add_mean = MeanShift(+1)
        self.head = nn.Sequential(conv3x3(3, channels))
        self.body = nn.Sequential(
            *(ResidualGroup(channels, blocks) for _ in range(groups)), conv3x3(channels, channels)
        )
        self.tail = Tail(scale, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, h, w) float in [0, 1] -> (B, 3, scale h, scale w) float32, about [0, 1] and not clamped."""
        features = self.head(self.sub_mean(RGB_RANGE * x.float()))
        features = features + self.body(features)
        return self.tail(features, self.add_mean.bias)
