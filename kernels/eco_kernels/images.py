"""What the operations share about image batches `(B, C, H, W)`: their two layouts, and values in [0, 1]."""

import torch
from torch import Tensor


def memory_format(x: Tensor) -> torch.memory_format:
    """Layout of the result for `x`, `(B, C, H, W)`: channels_last where the channels are interleaved, else NCHW."""
    return torch.channels_last if x.shape[1] > 1 and x.stride(1) == 1 else torch.contiguous_format


def unit_range(image: Tensor) -> Tensor:
    """fp32 in [0, 1] of a uint8 image; a float image only changes its type."""
    return image.float().div_(255) if image.dtype == torch.uint8 else image.float()


def per_sample(alpha: Tensor) -> Tensor:
    """A weight, 0-dim or `(B,)`, in a shape that multiplies images."""
    return alpha if alpha.ndim == 0 else alpha.view(-1, 1, 1, 1)
