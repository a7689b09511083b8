"""The operations: check the arguments, then hand them to the implementation for the device."""

import torch
from torch import Tensor

from eco_kernels import checks
from eco_kernels.dispatch import implementation, on


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
    checks.check_store({"store": store}, offsets, widths, (index, top, left, orientation), patch, channels)
    with on(store.device):
        return implementation(store.device).gather_patches(
            store, offsets, widths, index, top, left, orientation, patch, channels=channels
        )


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
    stores = {"store_a": store_a, "store_b": store_b}
    checks.check_store(stores, offsets, widths, (index, top, left, orientation), patch, channels)
    checks.check_per_sample("alpha", alpha, len(index), store_a.device, scalar=True)
    checks.check_choice("dtype", dtype, checks.FLOATS)
    with on(store_a.device):
        return implementation(store_a.device).gather_mix(
            store_a, store_b, offsets, widths, index, top, left, orientation, patch, alpha, dtype, channels=channels
        )


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
    checks.check_images("x", x)
    checks.check_resize("x", x, scale, rounding, border)
    if x.dtype == torch.uint8 and rounding == "none":
        raise TypeError("x has dtype torch.uint8 with rounding 'none'; divide it by 255 to a float image in [0, 1]")
    with on(x.device):
        return implementation(x.device).bicubic_downsample(x, scale, rounding=rounding, border=border)


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
    checks.check_images("centroid", centroid)
    checks.check_images("lr", lr)
    checks.check_resize("centroid", centroid, scale, rounding, border)
    batch, channels, height, width = centroid.shape
    checks.check_shape("lr", lr, (batch, channels, height // scale, width // scale))
    checks.check_device("lr", lr, centroid.device)
    checks.check_per_sample("alpha", alpha, batch, centroid.device, scalar=True)
    checks.check_choice("dtype", dtype, checks.FLOATS)
    checks.check_windows(lr, top, left, patch, orientation)
    with on(centroid.device):
        return implementation(centroid.device).downsample_mix(
            centroid,
            lr,
            alpha,
            scale,
            rounding=rounding,
            border=border,
            top=top,
            left=left,
            patch=patch,
            orientation=orientation,
            dtype=dtype,
        )


@torch.no_grad()
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
    """The pixel loss against the blended target, and its gradient (Lee & Heo 2024, Eq. 14), without an autograd node.

    `mean of weights_b loss(scale_factor (sr - target))` over all elements, with `target = alpha hr + (1 - alpha)
    centroid` never written to memory. Arithmetic is fp32; sums are taken in a fixed order.

    Args:
        sr: `(B, C, H, W)` float32, float16 or bfloat16: the student's output.
        hr, centroid: `(B, C, H, W)` uint8 (taken over 255) or float. `centroid=None`: the target is `hr`;
            `hr=None`: it is the centroid. `alpha` is not read then, and may be None.
        alpha: float32 0-dim or `(B,)` on the device of `sr`: the weight of `hr`.
        kind: "l1" |d| (gradient 0 where d is 0 or NaN), "l2" d^2, or "charbonnier" sqrt(d^2 + 1e-6), d the scaled
            difference.
        scale_factor: number or float32 0-dim tensor on the device of `sr` that multiplies the difference: 255 for
            the paper's loss on the 0-255 scale. For "l1" it multiplies the loss as well.
        weights: float32 `(B,)` on the device of `sr`; None means 1.

    Returns:
        `(loss, grad)`: the loss as float32 0-dim, and d loss / d sr with the shape, dtype and layout of `sr`.

    Raises:
        TypeError: a dtype differs from the above.
        ValueError: a shape, device or kind differs, or both `hr` and `centroid` are None.
    """
    check_loss(sr, hr, centroid, alpha, kind, scale_factor, weights)
    with on(sr.device):
        return implementation(sr.device).eco_l1_with_grad(
            sr, hr, centroid, alpha, kind=kind, scale_factor=scale_factor, weights=weights
        )


def check_loss(
    sr: Tensor,
    hr: Tensor | None,
    centroid: Tensor | None,
    alpha: Tensor | None,
    kind: str,
    scale_factor: float | Tensor,
    weights: Tensor | None,
) -> None:
    checks.check_tensor("sr", sr, 4, checks.FLOATS)
    checks.check_choice("kind", kind, checks.KINDS)
    for name, image in (("hr", hr), ("centroid", centroid)):
        if image is not None:
            checks.check_images(name, image)
            checks.check_shape(name, image, sr.shape)
            checks.check_device(name, image, sr.device)
    if hr is None and centroid is None:
        raise ValueError("hr and centroid are both None; the loss needs a target")
    if hr is not None and centroid is not None:
        checks.check_per_sample("alpha", alpha, len(sr), sr.device, scalar=True)
    checks.check_factor("scale_factor", scale_factor, sr.device)
    if weights is not None:
        checks.check_per_sample("weights", weights, len(sr), sr.device, scalar=False)
