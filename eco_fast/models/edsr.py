"""EDSR (Lim et al., "Enhanced Deep Residual Networks for Single Image Super-Resolution", CVPRW 2017).

Parameters carry the names of the published EDSR-PyTorch files, so those load without renaming.
"""

import torch
from torch import Tensor, nn

from eco_fast.models.layers import RGB_RANGE, MeanShift, conv3x3
from eco_fast.models.tail import Tail


class ResidualBlock(nn.Module):
    """x + res_scale * conv(relu(conv(x))), without batch normalisation."""

    def __init__(self, channels: int, res_scale: float) -> None:
        super().__init__()
        self.body = nn.Sequential(conv3x3(channels, channels), nn.ReLU(), conv3x3(channels, channels))
        self.res_scale = res_scale

    def forward(self, x: Tensor) -> Tensor:
        """x (B, channels, h, w) -> the same shape."""
        return torch.add(x, self.body(x), alpha=self.res_scale)  # one pass, rounded once under autocast


class EDSR(nn.Module):
    """EDSR with `blocks` residual blocks of `channels` channels."""

    def __init__(self, scale: int, *, blocks: int, channels: int, res_scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.sub_mean = MeanShift(-1)
        self.add_mean = MeanShift(+1)
        self.head = nn.Sequential(conv3x3(3, channels))
        residual_blocks = [ResidualBlock(channels, res_scale) for _ in range(blocks)]
        self.body = nn.Sequential(*residual_blocks, conv3x3(channels, channels))
        self.tail = Tail(scale, channels)

    @property
    def receptive_radius(self) -> int:
        """LR pixels that a pixel of the output sees on each side, at most: one for every convolution in its path."""
        return sum(layer.kernel_size[0] // 2 for layer in self.modules() if isinstance(layer, nn.Conv2d))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, h, w) float in [0, 1] -> (B, 3, scale h, scale w) float32, about [0, 1] and not clamped."""
        features = self.head(self.sub_mean(RGB_RANGE * x.float()))
        features = features + self.body(features)
        return self.tail(features, self.add_mean.bias)
