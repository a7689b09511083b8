"""The student's input in plain PyTorch; of a window only what the patches can see is filtered."""

import torch
from torch import Tensor

from eco_kernels.bicubic import REACH
from eco_kernels.downsample.cpu import downsample
from eco_kernels.gather.cpu import cut
from eco_kernels.images import per_sample, unit_range


def downsample_mix(
    centroid: Tensor,
    lr: Tensor,
    alpha: Tensor,
    scale: int,
    top: Tensor | None,
    left: Tensor | None,
    patch: int | None,
    orientation: Tensor | None,
    rounding: str,
    border: str,
    dtype: torch.dtype,
) -> Tensor:
    """See `eco_kernels.downsample_mix`."""
    if rounding == "none":
        centroid = unit_range(centroid)
    if top is not None and left is not None and patch is not None:
        lr = cut(lr, top, left, orientation, patch)
        height, width = (side // scale for side in centroid.shape[-2:])
        context = patch + 2 * REACH
        if height > context or width > context:
            # Filter only what the patches can see. A cut window ends at the image's side, where the border rule holds,
            # or `REACH` or more pixels away from the patch, where the wrong border does not show.
            rows, columns = min(context, height), min(context, width)
            first_row, first_column = (top - REACH).clamp(0, height - rows), (left - REACH).clamp(0, width - columns)
            centroid = cut(centroid, first_row * scale, first_column * scale, None, rows * scale, columns * scale)
            top, left = top - first_row, left - first_column
        down = cut(downsample(centroid, scale, rounding, border), top, left, orientation, patch)
    else:
        down = downsample(centroid, scale, rounding, border)
        if orientation is not None:
            corner = torch.zeros_like(orientation)
            lr, down = (cut(image, corner, corner, orientation, lr.shape[-1]) for image in (lr, down))
    if rounding == "matlab":
        down = down.div_(255)
    mixed = torch.lerp(down.float(), unit_range(lr), per_sample(alpha))
    return mixed.to(dtype=dtype, memory_format=torch.channels_last)
