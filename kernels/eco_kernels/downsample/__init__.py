"""`bicubic_downsample`: MATLAB's antialiased bicubic `imresize`, bit for bit."""

from typing import Any

import torch
from torch import Tensor

from eco_kernels.checks import check_images, check_resize
from eco_kernels.dispatch import implementation, operation
from eco_kernels.images import memory_format


def _empty(given: dict[str, Any]) -> Tensor:
    x, scale = given["x"], given["scale"]
    batch, channels, height, width = x.shape
    shape = (batch, channels, height // scale, width // scale)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


@operation(_empty)
@torch.no_grad()
def bicubic_downsample(x: Tensor, scale: int, *, rounding: str = "matlab", border: str = "symmetric") -> Tensor:
    """Downscale images as MATLAB's antialiased bicubic `imresize` does, for integer scales.

    Not differentiable. NCHW-contiguous and channels_last inputs are both native, and the result has the same layout.

    Args:
        x: `(B, C, H, W)` uint8, or float32 / float16 / bfloat16 in [0, 1]; H and W are multiples of `scale`.
        scale: 2, 3 or 4.
        rounding: "matlab" filters 8-bit values along height, rounds half away from zero to 8 bit, filters along width
            and rounds again, bit for bit as MATLAB does on uint8 (float input is clamped, times 255 and rounded half
            up to 8 bit first); "none" is the same filter in fp32 without rounding, for float input.
        border: "symmetric" (today's MATLAB) mirrors the image at its sides, "replicate" repeats the edge pixel.

    Returns:
        `(B, C, H / scale, W / scale)` of the dtype of `x`; 8-bit values over 255 for float input with "matlab".

    Raises:
        TypeError: another dtype, or uint8 with rounding "none" (divide by 255 first).
        ValueError: another shape, scale, rounding or border, or a side that the scale does not divide.
    """
    check_images("x", x)
    check_resize("x", x, scale, rounding, border)
    if x.dtype == torch.uint8 and rounding == "none":
        raise TypeError("x has dtype torch.uint8 with rounding 'none'; divide it by 255 to a float image in [0, 1]")
    return implementation(__name__, x.device).bicubic_downsample(x, scale, rounding, border)
