"""Layers that several networks share."""

from typing import Any

import torch
from torch import Tensor, nn

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of the DIV2K training images
RGB_RANGE = 255.0  # published weights work on 0-255


def conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 3 x 3 convolution that keeps the size; torch's default initialisation."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)


class FloatConv2d(nn.Conv2d):
    """The last convolution of a network: float32 also under autocast.

    Its output is the picture, where the 8 bits of bfloat16 would show as banding (near 1.0 they step by 1/256).
    """

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in_channels, h, w), any float type -> (B, out_channels, h, w) float32."""
        with torch.autocast(x.device.type, enabled=False):
            return self._conv_forward(x.float(), self.weight, self.bias)


class FloatConv3x3(FloatConv2d):
    """A `FloatConv2d` of 3 x 3 that keeps the size."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1)


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
            error_messages.append(
                f"{prefix}weight is not the identity, the only colour transform that networks have here"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


def mean_shift_state() -> dict[str, Tensor]:
    """The constants in state dicts of networks with `sub_mean` and `add_mean`."""
    shifts = {"sub_mean": MeanShift(-1), "add_mean": MeanShift(+1)}
    return {f"{name}.{key}": value for name, shift in shifts.items() for key, value in shift.state_dict().items()}


FACTORS = {2: (2,), 3: (3,), 4: (2, 2)}
"""Scale -> the shuffles that make it."""


def upsampler(scale: int, channels: int) -> nn.Sequential:
    """Sub-pixel upsampling: a convolution and a shuffle for each of `FACTORS`."""
    layers: list[nn.Module] = []
    for factor in FACTORS[scale]:
        layers += [conv3x3(channels, factor * factor * channels), nn.PixelShuffle(factor)]
    return nn.Sequential(*layers)
