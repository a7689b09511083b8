"""The operations in plain PyTorch: the fast path on the CPU, and a working one on every other device.

Arguments are checked by `eco_kernels.functional` before they come here. `rounding="matlab"` is exact, not close.
"""

from functools import lru_cache

import torch
from torch import Tensor

from eco_kernels.bicubic import REACH, bands, interleaved_bands
from eco_kernels.checks import CHARBONNIER_EPS
from eco_kernels.layout import memory_format

# Elements of the loss worked on at a time: a handful of fp32 buffers of this size stay in a core's L2 cache.
_LOSS_CHUNK = 1 << 17

# The fp32 number just below one half. `floor(x + _HALF)` rounds x >= 0 half up for every fp32 x; with 0.5 the sum
# rounds 0.49999997 up to 1.
_HALF = 0.5 - 2.0**-25


def gather_patches(
    store: Tensor,
    offsets: Tensor,
    widths: Tensor,
    index: Tensor,
    top: Tensor,
    left: Tensor,
    orientation: Tensor,
    patch: int,
    *,
    channels: int = 3,
) -> Tensor:
    """See `eco_kernels.gather_patches`."""
    gather = _slices if store.device.type == "cpu" else _gather
    return gather(store, offsets, widths, index, top, left, orientation, patch, channels)


def gather_mix(
    store_a: Tensor,
    store_b: Tensor,
    offsets: Tensor,
    widths: Tensor,
    index: Tensor,
    top: Tensor,
    left: Tensor,
    orientation: Tensor,
    patch: int,
    alpha: Tensor,
    dtype: torch.dtype = torch.float32,
    *,
    channels: int = 3,
) -> Tensor:
    """See `eco_kernels.gather_mix`."""
    stores = (store_a,) if store_a is store_b else (store_a, store_b)
    places = (offsets, widths, index, top, left, orientation, patch)
    patches = [gather_patches(store, *places, channels=channels).float() for store in stores]
    mixed = torch.lerp(patches[-1], patches[0], _per_sample(alpha)).div_(255)
    return mixed.to(dtype).permute(0, 3, 1, 2)


def bicubic_downsample(x: Tensor, scale: int, *, rounding: str = "matlab", border: str = "symmetric") -> Tensor:
    """See `eco_kernels.bicubic_downsample`."""
    result = _downsample(x, scale, rounding, border)
    if rounding == "matlab" and x.dtype != torch.uint8:
        result = result.div_(255)
    return result.to(x.dtype)


def downsample_mix(
    centroid: Tensor,
    lr: Tensor,
    alpha: Tensor,
    scale: int,
    top: Tensor | None = None,
    left: Tensor | None = None,
    patch: int | None = None,
    orientation: Tensor | None = None,
    *,
    rounding: str = "matlab",
    border: str = "symmetric",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """See `eco_kernels.downsample_mix`."""
    if rounding == "none":
        centroid = unit_range(centroid)
    if top is not None and left is not None and patch is not None:
        lr = _cut(lr, top, left, orientation, patch)
        height, width = (side // scale for side in centroid.shape[-2:])
        context = patch + 2 * REACH
        if height > context or width > context:
            # Filter only what the patches can see. A cut window ends at the image's side, where the border rule holds,
            # or `REACH` or more pixels away from the patch, where the wrong border does not show.
            rows, columns = min(context, height), min(context, width)
            first_row, first_column = (top - REACH).clamp(0, height - rows), (left - REACH).clamp(0, width - columns)
            centroid = _cut(centroid, first_row * scale, first_column * scale, None, rows * scale, columns * scale)
            top, left = top - first_row, left - first_column
        down = _cut(_downsample(centroid, scale, rounding, border), top, left, orientation, patch)
    else:
        down = _downsample(centroid, scale, rounding, border)
        if orientation is not None:
            corner = torch.zeros_like(orientation)
            lr, down = (_cut(image, corner, corner, orientation, lr.shape[-1]) for image in (lr, down))
    if rounding == "matlab":
        down = down.div_(255)
    mixed = torch.lerp(down.float(), unit_range(lr), _per_sample(alpha))
    return mixed.to(dtype=dtype, memory_format=torch.channels_last)


def eco_l1_with_grad(
    sr: Tensor,
    hr: Tensor | None,
    centroid: Tensor | None,
    alpha: Tensor | None,
    *,
    kind: str = "l1",
    scale_factor: float | Tensor = 1.0,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `eco_kernels.eco_l1_with_grad`."""
    grad = torch.empty_like(sr, memory_format=memory_format(sr))
    samples = max(1, _LOSS_CHUNK // sr[0].numel())
    partials = []
    for start in range(0, len(sr), samples):
        part = slice(start, start + samples)
        difference = _target_difference(sr, hr, centroid, alpha, part).mul_(scale_factor)
        pixel_loss, slope = _pixel_loss(difference, kind)
        if weights is None:
            partials.append(pixel_loss.sum())
        else:
            partials.append(pixel_loss.sum(dim=(1, 2, 3)).mul_(weights[part]).sum())
            slope.mul_(weights[part].view(-1, 1, 1, 1))
        torch.mul(slope, scale_factor / sr.numel(), out=slope)
        grad[part] = slope
    # One partial sum per chunk, then their sum: the order is fixed, so the loss is the same in every run.
    return torch.stack(partials).sum() / sr.numel(), grad


def unit_range(image: Tensor) -> Tensor:
    """fp32 in [0, 1] of a uint8 image; a float image only changes its type."""
    return image.float().div_(255) if image.dtype == torch.uint8 else image.float()


def quantise(image: Tensor) -> Tensor:
    """8-bit values of a float image in [0, 1], as fp32: clamp, multiply by 255 in fp32, round half up."""
    return image.float().clamp(0, 1).mul_(255).add_(_HALF).floor_()


def _target_difference(
    sr: Tensor, hr: Tensor | None, centroid: Tensor | None, alpha: Tensor | None, part: slice
) -> Tensor:
    """`sr - (alpha hr + (1 - alpha) centroid)` in fp32 for some samples, in a tensor of its own."""
    if hr is not None and centroid is not None and alpha is not None:
        weight = _per_sample(alpha if alpha.ndim == 0 else alpha[part])
        target = torch.lerp(unit_range(centroid[part]), unit_range(hr[part]), weight)
    else:
        only = hr if hr is not None else centroid
        assert only is not None
        target = unit_range(only[part])
    return sr[part].float() - target


def _pixel_loss(difference: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """The loss of every pixel and its derivative; `difference` may be overwritten."""
    if kind == "l1":
        return difference.abs(), difference.sign_()
    if kind == "l2":
        return difference.square(), difference.mul_(2)
    loss = difference.square().add_(CHARBONNIER_EPS**2).sqrt_()
    return loss, difference.div_(loss)


def _per_sample(alpha: Tensor) -> Tensor:
    return alpha if alpha.ndim == 0 else alpha.view(-1, 1, 1, 1)


def _slices(
    store: Tensor,
    offsets: Tensor,
    widths: Tensor,
    index: Tensor,
    top: Tensor,
    left: Tensor,
    orientation: Tensor,
    patch: int,
    channels: int,
) -> Tensor:
    """Patch by patch, `(B, P, P, channels)`: rows are dense in a store, which is faster than pixels by index."""
    out = torch.empty((len(index), patch, patch, channels), dtype=store.dtype)
    width = widths[index].long()
    start = offsets[index] + (top * width + left) * channels
    places = zip(start.tolist(), width.tolist(), orientation.tolist(), strict=True)
    skipped = int(store.storage_offset())
    for target, (first, columns, turn) in zip(out, places, strict=True):
        cut = store.as_strided((patch, patch, channels), (columns * channels, channels, 1), first + skipped)
        if turn & 4:
            pixels = cut.contiguous().view(-1, channels)
            torch.index_select(pixels, 0, _turned(patch, turn), out=target.view(-1, channels))
        elif turn:
            target.copy_(cut.contiguous().flip([axis for axis, bit in ((1, 1), (0, 2)) if turn & bit]))
        else:
            target.copy_(cut)
    return out


@lru_cache(maxsize=8)
def _turned(patch: int, turn: int) -> Tensor:
    """Which pixel of a patch comes where once it is flipped and transposed: twice as fast as a strided copy."""
    pixels = torch.arange(patch * patch).view(patch, patch)
    return pixels.flip([axis for axis, bit in ((1, 1), (0, 2)) if turn & bit]).T.flatten()


def _gather(
    store: Tensor,
    offsets: Tensor,
    widths: Tensor,
    index: Tensor,
    top: Tensor,
    left: Tensor,
    orientation: Tensor,
    patch: int,
    channels: int,
) -> Tensor:
    """The same where a slice is a launch: pixels by their index."""
    device = store.device
    index, top, left, orientation = (tensor.to(device) for tensor in (index, top, left, orientation))
    first_pixel = offsets[index].div(channels, rounding_mode="floor")
    pixels = _pixel_index(first_pixel, widths[index].long(), top, left, orientation, patch, patch)
    shape = (len(index), patch, patch, channels)
    whole = store.numel() // channels * channels
    return store[:whole].view(-1, channels).index_select(0, pixels).view(shape)


def _pixel_index(
    first_pixel: Tensor, width: Tensor, top: Tensor, left: Tensor, orientation: Tensor | None, rows: int, columns: int
) -> Tensor:
    """Where the pixels of oriented patches lie in flat images: int64 `(B * rows * columns,)`.

    A patch's index is a sum of a part per output row and a part per output column, so the work on full patches is
    one addition; a transposition swaps the parts (patches are square then).
    """
    down, across = torch.arange(rows, device=top.device), torch.arange(columns, device=top.device)
    if orientation is None:
        row, column = down + top.unsqueeze(1), across + left.unsqueeze(1)
    else:
        flags = orientation.unsqueeze(1)
        row = torch.where((flags & 2) != 0, rows - 1 - down, down) + top.unsqueeze(1)
        column = torch.where((flags & 1) != 0, columns - 1 - across, across) + left.unsqueeze(1)
    row = row * width.unsqueeze(1) + first_pixel.unsqueeze(1)
    if orientation is not None:
        transposed = (flags & 4) != 0
        row, column = torch.where(transposed, column, row), torch.where(transposed, row, column)
    return (row.unsqueeze(2) + column.unsqueeze(1)).flatten()


def _cut(
    images: Tensor, top: Tensor, left: Tensor, orientation: Tensor | None, rows: int, columns: int | None = None
) -> Tensor:
    """A window of each image, oriented: `(B, C, rows, columns)` channels_last; square unless `columns` is given."""
    columns = rows if columns is None else columns
    batch, channels, height, width = images.shape
    top, left = top.to(images.device), left.to(images.device)
    orientation = None if orientation is None else orientation.to(images.device)
    number = torch.arange(batch, device=images.device)
    pixels = _pixel_index(
        number * (height * width), torch.full_like(number, width), top, left, orientation, rows, columns
    )
    flat = images.permute(0, 2, 3, 1).reshape(-1, channels)
    return flat.index_select(0, pixels).view(batch, rows, columns, channels).permute(0, 3, 1, 2)


def _downsample(x: Tensor, scale: int, rounding: str, border: str) -> Tensor:
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
