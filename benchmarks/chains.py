"""What the operations replace: the same results in plain PyTorch, as one would write them, and in NumPy.

Shapes are those of `eco_kernels`: images `(B, C, H, W)`, stores flat, indices `(B,)`.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eco_kernels.bicubic import DIVISOR, FIRST_TAP, TAPS, tap_positions


class Patches(NamedTuple):
    """Which patches: `image`, `top`, `left`, `orientation` are int64 `(B,)`, `side` in pixels of the store."""

    image: Tensor
    top: Tensor
    left: Tensor
    orientation: Tensor
    side: int


def orient(patch: Tensor, orientation: int) -> Tensor:
    """Flip left-right, flip up-down, transpose an `(H, W, C)` patch."""
    axes = [axis for axis, flag in ((1, 1), (0, 2)) if orientation & flag]
    patch = patch.flip(axes) if axes else patch
    return patch.transpose(0, 1) if orientation & 4 else patch


def slice_patches(images: list[Tensor], plan: list[tuple[int, int, int, int]], side: int) -> Tensor:
    """Patches by slices, flips and a stack: uint8 `(B, P, P, C)`.

    Args:
        images: `(H, W, C)` each.
        plan: image, top, left and orientation of every patch, as Python numbers.
        side: P.
    """
    return torch.stack([orient(images[i][y : y + side, x : x + side], o) for i, y, x, o in plan])


def index_patches(store: Tensor, offsets: Tensor, widths: Tensor, patches: Patches) -> Tensor:
    """Patches of RGB images by one index of every value in the flat store: uint8 `(B, P, P, 3)`."""
    image, top, left, orientation, side = patches
    flags = orientation.view(-1, 1)
    line = torch.arange(side, device=store.device)
    y = torch.where((flags & 2) != 0, side - 1 - line, line) + top.view(-1, 1)
    x = torch.where((flags & 1) != 0, side - 1 - line, line) + left.view(-1, 1)
    transposed = ((flags & 4) != 0).unsqueeze(2)
    rows = torch.where(transposed, y.unsqueeze(1), y.unsqueeze(2))
    columns = torch.where(transposed, x.unsqueeze(2), x.unsqueeze(1))
    pixels = offsets[image].view(-1, 1, 1) + (rows * widths[image].view(-1, 1, 1) + columns) * 3
    return store[pixels.unsqueeze(3) + torch.arange(3, device=store.device)]


def mix_patches(first: Tensor, second: Tensor, alpha: Tensor) -> Tensor:
    """uint8 `(B, P, P, C)` twice -> fp32 `(B, C, P, P)` channels_last in [0, 1]."""
    return blend(first, second, alpha).permute(0, 3, 1, 2)


def blend(first: Tensor, second: Tensor, alpha: Tensor) -> Tensor:
    """`alpha first + (1 - alpha) second` of 8-bit values, fp32 in [0, 1]."""
    return alpha * (first.float() / 255) + (1 - alpha) * (second.float() / 255)


class Filter(NamedTuple):
    """What the convolutions need: int64 positions of the padded pixels along each side, and fp32 taps `(K,)`."""

    rows: Tensor
    columns: Tensor
    taps: Tensor
    scale: int


def bicubic_filter(x: Tensor, scale: int) -> Filter:
    """The `Filter` for images like `x`: sides mirrored with the edge pixel repeated, as MATLAB does."""
    rows, columns = (_mirrored(size, scale).to(x.device) for size in x.shape[-2:])
    return Filter(rows, columns, torch.tensor(TAPS[scale], device=x.device) / DIVISOR[scale], scale)


def bicubic_chain(x: Tensor, tables: Filter, depthwise: bool) -> Tensor:
    """MATLAB's 8-bit bicubic by padding and two convolutions: whole fp32 numbers 0 to 255.

    Two forms, to be fair. With every plane as an image of one channel, eager PyTorch on a CPU is up to five times as
    fast as with `depthwise` convolutions; but those TorchInductor turns into loops, three to ten times as fast.
    """
    rows, columns, taps, scale = tables
    groups = x.shape[1] if depthwise else 1
    y = x.float()
    if not depthwise:
        y = y.contiguous().flatten(0, 1).unsqueeze(1)
    kernel = taps.expand(groups, 1, -1)
    y = F.conv2d(y.index_select(2, rows), kernel.unsqueeze(3), stride=(scale, 1), groups=groups)
    y = F.conv2d(_to_8_bit(y).index_select(3, columns), kernel.unsqueeze(2), stride=(1, scale), groups=groups)
    return _to_8_bit(y).reshape(*x.shape[:2], *y.shape[2:])


def bicubic_8_bit(x: Tensor, tables: Filter, depthwise: bool) -> Tensor:
    """`bicubic_chain` as uint8 channels_last."""
    return bicubic_chain(x, tables, depthwise).to(torch.uint8, memory_format=torch.channels_last)


def resize_matrices(x: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    """fp32 `(H / scale, H)` and `(W / scale, W)`: the downscale along each side with the border folded in."""
    height, width = (_resize_matrix(size, scale).to(x.device) for size in x.shape[-2:])
    return height, width


def two_matmuls(x: Tensor, matrices: tuple[Tensor, Tensor]) -> Tensor:
    """MATLAB's 8-bit bicubic by two matrix products: uint8 channels_last."""
    # Planes: on interleaved channels the products would be strided, and slower than this one copy.
    planes = x.to(torch.float32, memory_format=torch.contiguous_format)
    result = _to_8_bit(_to_8_bit(matrices[0] @ planes) @ matrices[1].t())
    return result.to(torch.uint8, memory_format=torch.channels_last)


def interpolate(x: Tensor, scale: int) -> Tensor:
    """PyTorch's antialiased bicubic, uint8. Not MATLAB's: weights are cut off at the border, roundings differ."""
    size = [side // scale for side in x.shape[-2:]]
    if x.device.type == "cpu":
        return F.interpolate(x, size, mode="bicubic", antialias=True)
    return _to_8_bit(F.interpolate(x.float(), size, mode="bicubic", antialias=True)).to(torch.uint8)


def downsample_mix_chain(
    centroid: Tensor,
    lr: Tensor,
    alpha: Tensor,
    tables: Filter,
    plan: list[tuple[int, int, int]] | None,
    side: int,
    depthwise: bool,
) -> Tensor:
    """Downscale, blend, and cut and orient each sample: fp32 `(B, C, P, P)` in [0, 1].

    Args:
        centroid, lr: uint8 windows, `(B, C, scale h, scale w)` and `(B, C, h, w)`.
        alpha: 0-dim.
        tables: Of `bicubic_filter` for the centroid.
        plan: top, left and orientation of every patch, as Python numbers; None takes the whole window.
        side: P.
        depthwise: As in `bicubic_chain`.
    """
    mixed = alpha * (lr.float() / 255) + (1 - alpha) * (bicubic_chain(centroid, tables, depthwise) / 255)
    if plan is None:
        return mixed
    samples = mixed.permute(0, 2, 3, 1)
    cut = [
        orient(image[y : y + side, x : x + side], o) for image, (y, x, o) in zip(samples.unbind(), plan, strict=True)
    ]
    return torch.stack(cut).permute(0, 3, 1, 2)


def tail_layers(
    features: Tensor, weights: list[Tensor], biases: list[Tensor], dtype: torch.dtype, last: torch.dtype
) -> Tensor:
    """The layers of a network's end one by one: convolutions with shuffles between them.

    Args:
        features, weights, biases: As `eco_kernels.linear_tail` takes them.
        dtype, last: Of the arithmetic, and of the last convolution's, which is the picture's.
    """
    x = features
    for weight, bias, following in zip(weights, biases, weights[1:], strict=False):
        factor = round((weight.shape[0] / following.shape[1]) ** 0.5)
        x = F.pixel_shuffle(F.conv2d(x.to(dtype), weight.to(dtype), bias.to(dtype), padding=1), factor)
    return F.conv2d(x.to(last), weights[-1].to(last), biases[-1].to(last), padding=1)


def loss_chain(sr: Tensor, hr: Tensor, centroid: Tensor, alpha: Tensor) -> Tensor:
    """The blended target, then the L1 loss on the 0-255 scale."""
    return 255 * F.l1_loss(sr.float(), blend(hr, centroid, alpha))


class Lamb(torch.optim.Optimizer):
    """LAMB as `eco_kernels.lamb_update` has it, in operations over lists of tensors."""

    def __init__(self, parameters: list[torch.nn.Parameter], lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps})
        self._weights = parameters
        self._means, self._squares = ([torch.zeros_like(p) for p in parameters] for _ in range(2))

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        group, gradients = self.param_groups[0], [p.grad for p in self._weights]
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(self._means, gradients, 1 - beta1)
        torch._foreach_mul_(self._squares, beta2)
        torch._foreach_addcmul_(self._squares, gradients, gradients, 1 - beta2)
        roots = torch._foreach_sqrt(self._squares)
        torch._foreach_add_(roots, group["eps"])
        updates = torch._foreach_div(self._means, roots)
        ours = torch.stack(torch._foreach_norm(self._weights)).clamp(max=10.0)
        theirs = torch.stack(torch._foreach_norm(updates))
        ratio = torch.where((ours > 0) & (theirs > 0), ours / theirs, 1.0) * -group["lr"]
        torch._foreach_mul_(updates, list(ratio.unbind()))
        torch._foreach_add_(self._weights, updates)


@torch.no_grad()
def update_chain(
    parameters: list[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    average: list[Tensor],
    max_norm: float,
    share: float,
) -> None:
    """Clip the gradients by norm, step, and move the average of the weights, in operations over lists of tensors."""
    torch.nn.utils.clip_grad_norm_(parameters, max_norm, foreach=True)
    optimizer.step()
    torch._foreach_lerp_(average, parameters, share)


def imresize(image: np.ndarray, scale: int) -> np.ndarray:
    """MATLAB's `imresize(image, 1 / scale)` as a plain port has it: gather all taps of an axis, weigh, sum.

    Args:
        image: uint8 `(H, W, C)`.
        scale: A whole number that divides both sides.

    Returns:
        uint8 `(H / scale, W / scale, C)`.
    """
    weights, positions = _contributions(image.shape[0], scale)
    image = _half_away((weights[:, :, None, None] * image[positions].astype(np.float64)).sum(axis=1))
    weights, positions = _contributions(image.shape[1], scale)
    return _half_away((weights[None, :, :, None] * image[:, positions].astype(np.float64)).sum(axis=2))


def imresize_by_rows(image: np.ndarray, scale: int) -> np.ndarray:
    """`imresize` with a loop over the outputs of an axis, a product of weights and pixels for each."""
    for _ in range(2):
        weights, positions = _contributions(image.shape[0], scale)
        values = image.astype(np.float64)
        rows = [np.tensordot(w, values[p], 1) for w, p in zip(weights, positions, strict=True)]
        image = _half_away(np.stack(rows)).swapaxes(0, 1)  # the other axis is next; twice is none
    return image


def _contributions(size: int, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights, float64, and mirrored positions of the pixels that each output reads, both `(size / scale, K)`."""
    centre = (np.arange(size // scale) + 0.5) * scale - 0.5
    positions = np.floor(centre - 2 * scale)[:, None].astype(np.int64) + np.arange(4 * scale + 2)
    weights = _cubic((centre[:, None] - positions) / scale)
    weights /= weights.sum(axis=1, keepdims=True)
    mirror = np.concatenate((np.arange(size), np.arange(size)[::-1]))
    used = weights.any(axis=0)
    return weights[:, used], mirror[positions % (2 * size)][:, used]


def _cubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0))


def _half_away(values: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)


def _mirrored(size: int, scale: int) -> Tensor:
    """Positions of an axis with what the filter reads beyond its ends."""
    reach = -FIRST_TAP[scale]
    position = torch.arange(-reach, size + reach).remainder(2 * size)
    return torch.where(position < size, position, 2 * size - 1 - position)


def _resize_matrix(size: int, scale: int) -> Tensor:
    positions = tap_positions(size, scale, "symmetric")
    taps = torch.tensor(TAPS[scale], dtype=torch.float32) / DIVISOR[scale]
    return torch.zeros(len(positions), size).scatter_add_(1, positions, taps.expand(positions.shape))


def _to_8_bit(values: Tensor) -> Tensor:
    return (values + 0.5).floor().clamp(0, 255)
