"""The truth about the bicubic: MATLAB's `imresize` from its definition, and the integer taps in exact arithmetic."""

import math

import torch
from torch import Tensor

from eco_kernels.bicubic import DIVISOR, TAPS, reflect, tap_positions
from eco_kernels.gather.reference import unit_range


def cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -0.5 (Keys 1981, Eq. 15), zero beyond 2."""
    x = x.abs()
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def imresize(x: Tensor, factor: float, *, border: str = "symmetric") -> Tensor:
    """MATLAB's `imresize(x, factor)`, bicubic with antialiasing, for any factor, from its definition.

    Args:
        x: `(B, C, H, W)`; uint8 is rounded half away from zero after each pass, floats (in any range) are not rounded.
        factor: output over input size, above 0; sizes are rounded up.
        border: "symmetric" or "replicate".

    Returns:
        uint8 for uint8, else float64.
    """
    rounded = x.dtype == torch.uint8
    values = x.double()
    for axis in (2, 3):
        size = values.shape[axis]
        outputs = math.ceil(size * factor)
        stretch = min(factor, 1.0)
        centre = (torch.arange(outputs, dtype=torch.float64).unsqueeze(1) + 0.5) / factor - 0.5
        taps = math.ceil(4 / stretch) + 2
        positions = (centre - 2 / stretch).floor().long() + torch.arange(taps)
        weights = cubic((centre - positions) * stretch)
        weights = weights / weights.sum(dim=1, keepdim=True)
        values = _filter(values, reflect(positions, size, border), weights, axis)
        if rounded:
            values = (values.abs() + 0.5).floor() * values.sign()
            values = values.clamp(0, 255)
    return values.to(torch.uint8) if rounded else values


def bicubic_downsample(x: Tensor, scale: int, *, rounding: str = "matlab", border: str = "symmetric") -> Tensor:
    """The integer taps with int64 sums ("matlab"), or over their divisor with float64 sums ("none")."""
    if rounding == "none":
        values = unit_range(x)
        for axis in (2, 3):
            values = _taps(values, scale, border, axis) / DIVISOR[scale]
        return values
    values = to_8_bit(x).long()
    for axis in (2, 3):
        # floor((2 sum + D) / 2 D) rounds half up, which for what is left after the clamp is half away from zero.
        values = (2 * _taps(values, scale, border, axis) + DIVISOR[scale]).div(
            2 * DIVISOR[scale], rounding_mode="floor"
        )
        values = values.clamp(0, 255)
    return values.to(torch.uint8) if x.dtype == torch.uint8 else values.double() / 255


def to_8_bit(image: Tensor) -> Tensor:
    """float64 whole numbers 0 .. 255. The product with 255 is the fp32 one, by definition; the rounding is half up."""
    if image.dtype == torch.uint8:
        return image.double()
    return ((image.float().clamp(0, 1) * 255).double() + 0.5).floor()


def _taps(values: Tensor, scale: int, border: str, axis: int) -> Tensor:
    """The sums of taps times values along `axis`, in the dtype of `values`, not divided."""
    positions = tap_positions(values.shape[axis], scale, border).to(values.device)
    taps = torch.tensor(TAPS[scale], dtype=values.dtype, device=values.device).expand(positions.shape)
    return _filter(values, positions, taps, axis)


def _filter(values: Tensor, positions: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Output o along `axis` is the sum over k of `weights[o, k]` times the value at `positions[o, k]`."""
    windows = values.movedim(axis, -1)[..., positions.to(values.device)]
    return (windows * weights.to(values.device)).sum(-1).movedim(-1, axis)
