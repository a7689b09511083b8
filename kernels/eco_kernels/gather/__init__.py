"""`gather_patches` and `gather_mix`: oriented patches out of flat uint8 stores, and the blend of two stores."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from eco_kernels.checks import (
    FLOATS,
    INTEGERS,
    check_choice,
    check_count,
    check_device,
    check_indices,
    check_per_sample,
    check_range,
    check_shape,
    check_tensor,
)
from eco_kernels.dispatch import implementation, operation


class Places(NamedTuple):
    """Which patches to cut, as in `gather_patches`."""

    offsets: Tensor
    widths: Tensor
    image: Tensor
    top: Tensor
    left: Tensor
    orientation: Tensor
    patch: int
    channels: int


def _empty_patches(given: dict[str, Any]) -> Tensor:
    store: Tensor = given["store"]
    return store.new_empty((len(given["index"]), given["patch"], given["patch"], given["channels"]))


def _empty_mix(given: dict[str, Any]) -> Tensor:
    store: Tensor = given["store_a"]
    shape = (len(given["index"]), given["patch"], given["patch"], given["channels"])
    return store.new_empty(shape, dtype=given["dtype"]).permute(0, 3, 1, 2)


@operation(_empty_patches)
@torch.no_grad()
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
    """Cut a batch of oriented patches out of images that lie back to back in one flat store.

    Orientation o in 0 .. 7 of an HWC patch p, applied in this order: `o & 1` flips left-right, `o & 2` flips up-down,
    `o & 4` transposes height and width.

    Args:
        store: uint8 `(elements,)`, contiguous; image i is HWC and starts at element `offsets[i]`.
        offsets: int64 `(N,)`, ascending multiples of `channels`.
        widths: int32 or int64 `(N,)`, width of each image in pixels.
        index, top, left, orientation: int32 or int64 `(B,)`, on the store's device or the CPU: which image, which
            upper-left corner in pixels, which of the 8 orientations.
        patch: side P of the patches in pixels.
        channels: values per pixel.

    Returns:
        uint8 `(B, P, P, channels)`; `permute(0, 3, 1, 2)` of it is channels_last.

    Raises:
        TypeError: a dtype differs from the above.
        ValueError: a shape or device differs, or (looked at on the CPU only) a patch leaves its image.
    """
    places = Places(offsets, widths, index, top, left, orientation, patch, channels)
    check_store({"store": store}, places)
    return implementation(__name__, store.device).gather_patches(store, places)


@operation(_empty_mix)
@torch.no_grad()
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
    """Cut the same patches out of two stores and blend them: `alpha a + (1 - alpha) b` (Lee & Heo 2024, Eq. 14).

    Args:
        store_a, store_b: uint8 `(elements,)` each, as in `gather_patches`; the real images and the centroids.
        offsets, widths, index, top, left, orientation, patch, channels: as in `gather_patches`, for both stores.
        alpha: float32 0-dim or `(B,)` on the store's device, in [0, 1]; 0 and 1 give b and a exactly.
        dtype: float type of the result; the blend itself is fp32.

    Returns:
        `dtype` `(B, channels, P, P)` channels_last, in [0, 1].

    Raises:
        TypeError: a dtype differs from the above.
        ValueError: a shape or device differs, or (looked at on the CPU only) a patch leaves its image.
    """
    places = Places(offsets, widths, index, top, left, orientation, patch, channels)
    check_store({"store_a": store_a, "store_b": store_b}, places)
    check_per_sample("alpha", alpha, len(index), store_a.device, scalar=True)
    check_choice("dtype", dtype, FLOATS)
    return implementation(__name__, store_a.device).gather_mix(store_a, store_b, places, alpha, dtype)


def check_store(stores: dict[str, Tensor], places: Places) -> None:
    """Flat stores and the patches to be cut from them.

    The ranges are read on the CPU only, where they cost microseconds; on an accelerator that would wait for it.
    """
    offsets, widths, index, top, left, orientation, patch, channels = places
    first = next(iter(stores.values()))
    for name, store in stores.items():
        check_tensor(name, store, 1, (torch.uint8,))
        check_shape(name, store, first.shape)
        check_device(name, store, first.device)
        if not store.is_contiguous():
            raise ValueError(f"{name} has stride {store.stride()}; a store must be contiguous")
    check_tensor("offsets", offsets, 1, (torch.int64,))
    check_tensor("widths", widths, 1, INTEGERS)
    check_shape("widths", widths, offsets.shape)
    check_device("offsets", offsets, first.device)
    check_device("widths", widths, first.device)
    check_count("patch", patch)
    check_count("channels", channels)
    check_indices(first.device, index=index, top=top, left=left, orientation=orientation)
    if {first.device.type, index.device.type, top.device.type, left.device.type, orientation.device.type} != {"cpu"}:
        return
    check_range("index", index, len(offsets) - 1)
    check_range("orientation", orientation, 7)
    start, width = offsets[index], widths[index]
    limit = torch.cat((offsets, offsets.new_tensor([first.numel()])))[index + 1]
    last = start + ((top + patch - 1) * width + left + patch) * channels
    bad = (top < 0) | (left < 0) | (left + patch > width) | (last > limit) | (start % channels != 0)
    if bad.any():
        k = int(bad.nonzero()[0])
        raise ValueError(
            f"sample {k}: a patch of {patch} at top {int(top[k])}, left {int(left[k])} is not inside image"
            f" {int(index[k])} (width {int(width[k])}, elements {int(start[k])} to {int(limit[k])})"
        )
