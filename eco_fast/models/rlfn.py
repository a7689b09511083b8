"""RLFN (Kong et al., "Residual Local Feature Network for Efficient Super-Resolution", CVPRW 2022, arXiv 2205.07514).

Parameters carry the names of the published files.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from eco_fast.models.layers import FloatConv3x3, conv3x3

RGB_RANGE = 255.0  # published weights work on 0-255, with no mean subtracted
SMALLEST_SIDE = 15  # below this the attention's 7 x 7 pooling has nothing left to pool
_ATTENTION_CHANNELS = 16
_SLOPE = 0.05  # of the leaky ReLU


class SpatialAttention(nn.Module):
    """Enhanced spatial attention: a mask in (0, 1), mostly computed on a coarse grid, multiplied to the features."""

    def __init__(self, channels: int, attention_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, attention_channels, 1)
        self.conv_f = nn.Conv2d(attention_channels, attention_channels, 1)
        self.conv2 = nn.Conv2d(attention_channels, attention_channels, 3, stride=2)
        self.conv3 = conv3x3(attention_channels, attention_channels)
        self.conv4 = nn.Conv2d(attention_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, channels, h, w) -> the same shape."""
        reduced = self.conv1(x)
        coarse = self.conv3(F.max_pool2d(self.conv2(reduced), kernel_size=7, stride=3))
        coarse = F.interpolate(coarse, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return x * self.conv4(coarse + self.conv_f(reduced)).sigmoid()


class LocalFeatureBlock(nn.Module):
    """Three convolutions with leaky ReLUs and a skip around them, a 1 x 1 convolution, and the attention."""

    def __init__(self, channels: int, inner_channels: int) -> None:
        super().__init__()
        self.c1_r = conv3x3(channels, inner_channels)
        self.c2_r = conv3x3(inner_channels, inner_channels)
        self.c3_r = conv3x3(inner_channels, channels)
        self.c5 = nn.Conv2d(channels, channels, 1)
        self.esa = SpatialAttention(channels, _ATTENTION_CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, channels, h, w) -> the same shape."""
        features = x
        for convolution in (self.c1_r, self.c2_r, self.c3_r):
            features = F.leaky_relu(convolution(features), _SLOPE)
        return self.esa(self.c5(features + x))


class RLFN(nn.Module):
    """RLFN with `blocks` local feature blocks; the NTIRE 2022 entry has wider convolutions inside its blocks."""

    def __init__(self, scale: int, *, blocks: int, channels: int, inner_channels: int) -> None:
        super().__init__()
        self.scale = scale
        self.blocks = blocks
        self.conv_1 = conv3x3(3, channels)
        for number in range(1, blocks + 1):
            self.add_module(f"block_{number}", LocalFeatureBlock(channels, inner_channels))
        self.conv_2 = conv3x3(channels, channels)
        self.upsampler = nn.Sequential(FloatConv3x3(channels, 3 * scale * scale), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, h, w) float in [0, 1] -> (B, 3, scale h, scale w) float32, about [0, 1] and not clamped.

        Raises ValueError where h or w is below 15.
        """
        if min(x.shape[-2:]) < SMALLEST_SIDE:
            raise ValueError(f"RLFN takes images of at least {SMALLEST_SIDE} x {SMALLEST_SIDE}, not {tuple(x.shape)}")
        first = self.conv_1(RGB_RANGE * x.float())
        features = first
        for number in range(1, self.blocks + 1):
            features = self.get_submodule(f"block_{number}")(features)
        return self.upsampler(self.conv_2(features) + first) / RGB_RANGE
