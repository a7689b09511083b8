"""The truth about gathering: slice by slice, in float64, written to be read."""

import torch
from torch import Tensor


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
    """Slice by slice: uint8 `(B, P, P, channels)`."""
    patches = []
    for i, y, x, o in zip(index.tolist(), top.tolist(), left.tolist(), orientation.tolist(), strict=True):
        start, width = int(offsets[i]), int(widths[i])
        rows = [
            store[start + (y + r) * width * channels :][x * channels : (x + patch) * channels] for r in range(patch)
        ]
        patches.append(orient(torch.stack(rows).view(patch, patch, channels), o))
    return torch.stack(patches)


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
    dtype: torch.dtype = torch.float64,
    *,
    channels: int = 3,
) -> Tensor:
    """`alpha a + (1 - alpha) b`, `(B, channels, P, P)`."""
    place = (offsets, widths, index, top, left, orientation, patch)
    first = gather_patches(store_a, *place, channels=channels).permute(0, 3, 1, 2)
    second = gather_patches(store_b, *place, channels=channels).permute(0, 3, 1, 2)
    return blend(first, second, alpha).to(dtype)


def orient(patch: Tensor, orientation: int) -> Tensor:
    """One of the 8 orientations of an `(H, W, C)` patch: flip left-right, flip up-down, transpose, in this order."""
    if orientation & 1:
        patch = patch.flip(1)
    if orientation & 2:
        patch = patch.flip(0)
    if orientation & 4:
        patch = patch.transpose(0, 1)
    return patch


def unit_range(image: Tensor) -> Tensor:
    """float64 in [0, 1] of a uint8 image; a float image only changes its type."""
    return image.double() / 255 if image.dtype == torch.uint8 else image.double()


def blend(first: Tensor, second: Tensor, alpha: Tensor) -> Tensor:
    """`alpha first + (1 - alpha) second` of images, float64 in [0, 1]."""
    weight = alpha.double() if alpha.ndim == 0 else alpha.double().view(-1, 1, 1, 1)
    return weight * unit_range(first) + (1 - weight) * unit_range(second)
