"""Gathering in plain PyTorch: by slices on the CPU, by an index elsewhere."""

from functools import lru_cache

import torch
from torch import Tensor

from eco_kernels.gather import Places
from eco_kernels.images import per_sample


def gather_patches(store: Tensor, places: Places) -> Tensor:
    """See `eco_kernels.gather_patches`."""
    return (_slices if store.device.type == "cpu" else _gather)(store, places)


def gather_mix(store_a: Tensor, store_b: Tensor, places: Places, alpha: Tensor, dtype: torch.dtype) -> Tensor:
    """See `eco_kernels.gather_mix`."""
    stores = (store_a,) if store_a is store_b else (store_a, store_b)
    patches = [gather_patches(store, places).float() for store in stores]
    mixed = torch.lerp(patches[-1], patches[0], per_sample(alpha)).div_(255)
    return mixed.to(dtype).permute(0, 3, 1, 2)


def _slices(store: Tensor, places: Places) -> Tensor:
    """Patch by patch, `(B, P, P, channels)`: rows are dense in a store, which is faster than pixels by index."""
    offsets, widths, index, top, left, orientation, patch, channels = places
    out = torch.empty((len(index), patch, patch, channels), dtype=store.dtype)
    width = widths[index].long()
    start = offsets[index] + (top * width + left) * channels
    rows = zip(start.tolist(), width.tolist(), orientation.tolist(), strict=True)
    skipped = int(store.storage_offset())
    for target, (first, columns, turn) in zip(out, rows, strict=True):
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


def _gather(store: Tensor, places: Places) -> Tensor:
    """The same where a slice is a launch: pixels by their index."""
    index, top, left, orientation = (tensor.to(store.device) for tensor in places[2:6])
    offsets, widths, patch, channels = places.offsets, places.widths, places.patch, places.channels
    first_pixel = offsets[index].div(channels, rounding_mode="floor")
    pixels = pixel_index(first_pixel, widths[index].long(), top, left, orientation, patch, patch)
    shape = (len(index), patch, patch, channels)
    whole = store.numel() // channels * channels
    return store[:whole].view(-1, channels).index_select(0, pixels).view(shape)


def pixel_index(
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


def cut(
    images: Tensor, top: Tensor, left: Tensor, orientation: Tensor | None, rows: int, columns: int | None = None
) -> Tensor:
    """A window of each image, oriented: `(B, C, rows, columns)` channels_last; square unless `columns` is given."""
    columns = rows if columns is None else columns
    batch, channels, height, width = images.shape
    top, left = top.to(images.device), left.to(images.device)
    orientation = None if orientation is None else orientation.to(images.device)
    number = torch.arange(batch, device=images.device)
    pixels = pixel_index(
        number * (height * width), torch.full_like(number, width), top, left, orientation, rows, columns
    )
    flat = images.permute(0, 2, 3, 1).reshape(-1, channels)
    return flat.index_select(0, pixels).view(batch, rows, columns, channels).permute(0, 3, 1, 2)
