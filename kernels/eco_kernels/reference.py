"""The truth the tests compare with: the public functions in integer and float64 arithmetic, written to be read.

Signatures are those of `eco_kernels`. Results keep uint8 where the public function gives uint8 and are float64
elsewhere, so that a test sees the rounding of the fast form and not of this one.
"""

import math

import torch
from torch import Tensor

from eco_kernels.bicubic import DIVISOR, TAPS, reflect, tap_positions
from eco_kernels.checks import CHARBONNIER_EPS


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
    return _blend(first, second, alpha).to(dtype)


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


def downsample_mix(
    centroid: Tensor,
    lr: Tensor,
    alpha: Tensor,
    scale: int,
    *,
    rounding: str = "matlab",
    border: str = "symmetric",
    top: Tensor | None = None,
    left: Tensor | None = None,
    patch: int | None = None,
    orientation: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Filter the whole window in the image's frame, blend it with `lr`, then cut and orient each sample."""
    down = bicubic_downsample(centroid, scale, rounding=rounding, border=border)
    mixed = _blend(lr, down, alpha)
    samples = []
    for k, image in enumerate(mixed.permute(0, 2, 3, 1)):
        if top is not None and left is not None and patch is not None:
            image = image[int(top[k]) :, int(left[k]) :][:patch, :patch]
        samples.append(image if orientation is None else orient(image, int(orientation[k])))
    return torch.stack(samples).permute(0, 3, 1, 2).to(dtype)


def eco_l1(
    sr: Tensor,
    hr: Tensor | None,
    centroid: Tensor | None,
    alpha: Tensor | None,
    *,
    kind: str = "l1",
    scale_factor: float | Tensor = 1.0,
    weights: Tensor | None = None,
) -> Tensor:
    """The loss in float64, differentiable by PyTorch's own autograd."""
    difference = (sr.double() - _target(hr, centroid, alpha)) * scale_factor
    if kind == "l1":
        loss = difference.abs()
    elif kind == "l2":
        loss = difference**2
    else:
        loss = (difference**2 + CHARBONNIER_EPS**2).sqrt()
    return (loss if weights is None else loss * weights.double().view(-1, 1, 1, 1)).mean()


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
    """The loss and its derivative by hand, both float64."""
    arguments = (hr, centroid, alpha)
    loss = eco_l1(sr.detach(), *arguments, kind=kind, scale_factor=scale_factor, weights=weights)
    difference = (sr.detach().double() - _target(*arguments)) * scale_factor
    if kind == "l1":
        slope = difference.sign()
    elif kind == "l2":
        slope = 2 * difference
    else:
        slope = difference / (difference**2 + CHARBONNIER_EPS**2).sqrt()
    if weights is not None:
        slope = slope * weights.double().view(-1, 1, 1, 1)
    return loss, slope * scale_factor / sr.numel()


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


def to_8_bit(image: Tensor) -> Tensor:
    """float64 whole numbers 0 .. 255. The product with 255 is the fp32 one, by definition; the rounding is half up."""
    if image.dtype == torch.uint8:
        return image.double()
    return ((image.float().clamp(0, 1) * 255).double() + 0.5).floor()


def _target(hr: Tensor | None, centroid: Tensor | None, alpha: Tensor | None) -> Tensor:
    if hr is not None and centroid is not None and alpha is not None:
        return _blend(hr, centroid, alpha)
    only = hr if hr is not None else centroid
    if only is None:
        raise ValueError("hr and centroid are both None; the loss needs a target")
    return unit_range(only)


def _blend(first: Tensor, second: Tensor, alpha: Tensor) -> Tensor:
    weight = alpha.double() if alpha.ndim == 0 else alpha.double().view(-1, 1, 1, 1)
    return weight * unit_range(first) + (1 - weight) * unit_range(second)


def _taps(values: Tensor, scale: int, border: str, axis: int) -> Tensor:
    """The sums of taps times values along `axis`, in the dtype of `values`, not divided."""
    positions = tap_positions(values.shape[axis], scale, border).to(values.device)
    taps = torch.tensor(TAPS[scale], dtype=values.dtype, device=values.device).expand(positions.shape)
    return _filter(values, positions, taps, axis)


def _filter(values: Tensor, positions: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Output o along `axis` is the sum over k of `weights[o, k]` times the value at `positions[o, k]`."""
    windows = values.movedim(axis, -1)[..., positions.to(values.device)]
    return (windows * weights.to(values.device)).sum(-1).movedim(-1, axis)
