"""The truth about the student's input: filter, blend, cut and orient, one after the other, in float64."""

import torch
from torch import Tensor

from eco_kernels.downsample.reference import bicubic_downsample
from eco_kernels.gather.reference import blend, orient


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
    mixed = blend(lr, down, alpha)
    samples = []
    for k, image in enumerate(mixed.permute(0, 2, 3, 1)):
        if top is not None and left is not None and patch is not None:
            image = image[int(top[k]) :, int(left[k]) :][:patch, :patch]
        samples.append(image if orientation is None else orient(image, int(orientation[k])))
    return torch.stack(samples).permute(0, 3, 1, 2).to(dtype)
