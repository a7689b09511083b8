"""`downsample_mix`: the student's input from the teacher's output, filtered, blended, cut and oriented."""

from typing import Any

import torch
from torch import Tensor

from eco_kernels.checks import (
    FLOATS,
    check_choice,
    check_count,
    check_device,
    check_images,
    check_indices,
    check_per_sample,
    check_range,
    check_resize,
    check_shape,
)
from eco_kernels.dispatch import implementation, operation


def _empty(given: dict[str, Any]) -> Tensor:
    lr, patch = given["lr"], given["patch"]
    batch, channels, height, width = lr.shape
    height, width = (height, width) if patch is None else (patch, patch)
    shape = (batch, channels, height, width)
    return torch.empty(shape, dtype=given["dtype"], device=lr.device, memory_format=torch.channels_last)


@operation(_empty)
@torch.no_grad()
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
    """The student's input: `alpha lr + (1 - alpha) down(centroid)` (Lee & Heo 2024, Eq. 14). Not differentiable.

    The 8-bit bicubic does not commute with a transposition, so everything comes in the image's own frame: the whole
    window is filtered there, then `lr` and the result are cut alike, and oriented last.

    Args:
        centroid: `(B, C, scale h, scale w)` uint8, or float in [0, 1]: the teacher's output on a window of the image.
        lr: `(B, C, h, w)` uint8, or float in [0, 1]: the same window in low resolution. Float values are not rounded.
        alpha: float32 0-dim or `(B,)` on the images' device, in [0, 1]; 0 and 1 give the end points exactly.
        scale: 2, 3 or 4.
        top, left: int32 or int64 `(B,)` on the images' device or the CPU: the patch's corner in the window, LR pixels.
        patch: side P of the patches in LR pixels. `top`, `left` and `patch` come together; without them P is the
            whole window.
        orientation: int32 or int64 `(B,)` as in `gather_patches`; without it nothing is turned. Needs a square.
        rounding, border: as in `bicubic_downsample`, for the centroid ("none" takes uint8 over 255). The window's
            sides count as the image's sides; keep patches 2 LR pixels away from sides that are not.
        dtype: float type of the result; the blend itself is fp32.

    Returns:
        `dtype` `(B, C, P, P)` (or `(B, C, h, w)`) channels_last, in [0, 1].

    Raises:
        TypeError: a dtype differs from the above.
        ValueError: a shape, device, scale, rounding or border differs, or (looked at on the CPU only) a patch leaves
            its window.
    """
    check_images("centroid", centroid)
    check_images("lr", lr)
    check_resize("centroid", centroid, scale, rounding, border)
    batch, channels, height, width = centroid.shape
    check_shape("lr", lr, (batch, channels, height // scale, width // scale))
    check_device("lr", lr, centroid.device)
    check_per_sample("alpha", alpha, batch, centroid.device, scalar=True)
    check_choice("dtype", dtype, FLOATS)
    check_windows(lr, top, left, patch, orientation)
    return implementation(__name__, centroid.device).downsample_mix(
        centroid, lr, alpha, scale, top, left, patch, orientation, rounding, border, dtype
    )


def check_windows(
    lr: Tensor, top: Tensor | None, left: Tensor | None, patch: int | None, orientation: Tensor | None
) -> None:
    """The patches and orientations of a batch of windows `lr`.

    Indices on an accelerator are not read: that would wait for it.
    """
    batch, _, height, width = lr.shape
    place = {"top": top, "left": left, "patch": patch}
    missing = [name for name, value in place.items() if value is None]
    if missing and len(missing) < 3:
        raise ValueError(f"{' and '.join(missing)} missing; top, left and patch come together")
    limits: dict[str, tuple[Tensor, int]] = {}
    if top is not None and left is not None and patch is not None:
        check_count("patch", patch)
        if patch > min(height, width):
            raise ValueError(f"patch is {patch}; the window has {height} x {width} LR pixels")
        limits |= {"top": (top, height - patch), "left": (left, width - patch)}
    elif orientation is not None and height != width:
        raise ValueError(f"the window is {height} x {width}; only square ones can be oriented")
    if orientation is not None:
        limits["orientation"] = (orientation, 7)
    for name, (value, highest) in limits.items():
        check_indices(lr.device, **{name: value})
        check_shape(name, value, (batch,))
        if value.device.type == "cpu":
            check_range(name, value, highest)
