"""EDSR (Lim et al., "Enhanced Deep Residual Networks for Single Image Super-Resolution", CVPRW 2017).

Parameters carry the names of the published EDSR-PyTorch files, so those load without renaming.
"""

from typing import Any

import torch
from torch import Tensor, nn

from eco_fast.models.layers import FloatConv3x3, conv3x3

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of the DIV2K training images
RGB_RANGE = 255.0  # published weights work on 0-255


class MeanShift(nn.Module):
    """Adds sign * 255 * mean to each colour, in float32 even under autocast.

    Published files hold it as a 1 x 1 convolution. Its weight is the identity, so only the bias is applied; both are
    constants (buffers, never trained). A file whose weight is another matrix is refused when it is loaded.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, sign: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.eye(3).view(3, 3, 1, 1))
        self.register_buffer("bias", sign * RGB_RANGE * torch.tensor(RGB_MEAN))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, h, w) -> the same shape, float32."""
        return x.float() + self.bias.view(1, 3, 1, 1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        weight = state_dict.get(prefix + "weight")
        if weight is not None and not torch.equal(weight.cpu().float().flatten(), torch.eye(3).flatten()):
            *_, error_messages = args
            error_messages.append(f"{prefix}weight is not the identity, the only colour transform that EDSR has here")
        super()._load_from_state_dict(state_dict, prefix, *args)


class ResidualBlock(nn.Module):
    """x + res_scale * conv(relu(conv(x))), without batch normalisation."""

    def __init__(self, channels: int, res_scale: float) -> None:
        super().__init__()
        self.body = nn.Sequential(conv3x3(channels, channels), nn.ReLU(), conv3x3(channels, channels))
        self.res_scale = res_scale

    def forward(self, x: Tensor) -> Tensor:
        """x (B, channels, h, w) -> the same shape."""
        return torch.add(x, self.body(x), alpha=self.res_scale)  # one pass, rounded once under autocast


def upsampler(scale: int, channels: int) -> nn.Sequential:
    """Sub-pixel upsampling: one shuffle by 2 or 3, two shuffles by 2 for x4."""
    layers: list[nn.Module] = []
    for factor in {2: [2], 3: [3], 4: [2, 2]}[scale]:
        layers += [conv3x3(channels, factor * factor * channels), nn.PixelShuffle(factor)]
    return nn.Sequential(*layers)


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
        self.tail = nn.Sequential(upsampler(scale, channels), FloatConv3x3(channels, 3))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, h, w) float in [0, 1] -> (B, 3, scale h, scale w) float32, about [0, 1] and not clamped."""
        features = self.head(self.sub_mean(RGB_RANGE * x.float()))
        features = features + self.body(features)
        return self.add_mean(self.tail(features)) / RGB_RANGE
