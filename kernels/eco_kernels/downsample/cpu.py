"""The bicubic in plain PyTorch, as products with banded matrices. `rounding="matlab"` is exact, not close."""

import torch
from torch import Tensor

from eco_kernels.bicubic import bands, interleaved_bands
from eco_kernels.images import memory_format

# The fp32 number just below one half. `floor(x + _HALF)` rounds x >= 0 half up for every fp32 x; with 0.5 the sum
# rounds 0.49999997 up to 1.
_HALF = 0.5 - 2.0**-25


def bicubic_downsample(x: Tensor, scale: int, rounding: str, border: str) -> Tensor:
    """See `eco_kernels.bicubic_downsample`."""
    result = downsample(x, scale, rounding, border)
    if rounding == "matlab" and x.dtype != torch.uint8:
        result = result.div_(255)
    return result.to(x.dtype)


def downsample(x: Tensor, scale: int, rounding: str, border: str) -> Tensor:
    """The filter along height, then along width, as fp32 (or fp64) in the layout of `x`; 0 to 255 with "matlab"."""
    batch, channels, height, width = x.shape
    interleaved = memory_format(x) == torch.channels_last
    if interleaved:
        planes, inner = x.permute(0, 2, 3, 1).reshape(batch, height, width * channels), channels
    else:
        planes, inner = x.reshape(batch * channels, height, width), 1
    rounded = rounding == "matlab"
    with torch.autocast(x.device.type, enabled=False):
        result = _filter_columns(_filter_rows(planes, scale, border, rounded), inner, scale, border, rounded)
    if interleaved:
        return result.view(batch, height // scale, width // scale, channels).permute(0, 3, 1, 2)
    return result.view(batch, channels, height // scale, width // scale)


def quantise(image: Tensor) -> Tensor:
    """8-bit values of a float image in [0, 1], as fp32: clamp, multiply by 255 in fp32, round half up."""
    return image.float().clamp(0, 1).mul_(255).add_(_HALF).floor_()


def _filter_rows(planes: Tensor, scale: int, border: str, rounded: bool) -> Tensor:
    """Downscale axis 1 of `(N, H, L)`."""
    count, height, length = planes.shape
    dtype = _arithmetic(planes.device)
    result = planes.new_empty((count, height // scale, length), dtype=dtype)
    for band in bands(height, scale, border, dtype, planes.device):
        rows = planes[:, band.first : band.last]
        rows = quantise(rows) if rounded and rows.is_floating_point() else rows
        out = result[:, band.start : band.stop]
        out.copy_(torch.bmm(band.matrix.expand(count, -1, -1), rows.to(dtype)))
        if rounded:
            _round_to_8_bit(out)
    return result


def _filter_columns(planes: Tensor, inner: int, scale: int, border: str, rounded: bool) -> Tensor:
    """Downscale axis 2 of `(N, H, W * inner)`, whose pixels hold `inner` interleaved values."""
    count, height, length = planes.shape
    lines = planes.view(count * height, length)
    result = lines.new_empty((count * height, length // scale))
    for band in interleaved_bands(length // inner, scale, border, inner, planes.dtype, planes.device):
        source = lines[:, band.first * inner : band.last * inner]
        torch.mm(source, band.matrix, out=result[:, band.start * inner : band.stop * inner])
    return (_round_to_8_bit(result) if rounded else result).view(count, height, length // scale)


def _round_to_8_bit(values: Tensor) -> Tensor:
    """Round half away from zero and clamp to 0 .. 255, in place (negative values end at 0 however they round)."""
    return values.add_(0.5).clamp_(0, 255.5).floor_()


def _arithmetic(device: torch.device) -> torch.dtype:
    """fp32, or fp64 where the user allows matrix products of fp32 to be cut to TF32 or bf16."""
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    return torch.float32 if backend.matmul.fp32_precision in ("ieee", "none") else torch.float64
