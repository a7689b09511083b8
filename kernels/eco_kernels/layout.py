"""The two layouts of image batches."""

import torch
from torch import Tensor


def memory_format(x: Tensor) -> torch.memory_format:
    """Layout of the result for `x`, `(B, C, H, W)`: channels_last where the channels are interleaved, else NCHW."""
    return torch.channels_last if x.shape[1] > 1 and x.stride(1) == 1 else torch.contiguous_format
