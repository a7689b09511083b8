"""Operations of ECO training on image batches: patch gathering, the exact MATLAB bicubic, the blends and the loss.

The package stands alone: it imports PyTorch, and Triton where there is one, and knows nothing of the trainer.
`eco_kernels.reference` holds the slow and readable truth that the tests compare with.
"""

from eco_kernels.operators import (
    bicubic_downsample,
    downsample_mix,
    eco_l1,
    eco_l1_with_grad,
    gather_mix,
    gather_patches,
)

__all__ = [
    "bicubic_downsample",
    "downsample_mix",
    "eco_l1",
    "eco_l1_with_grad",
    "gather_mix",
    "gather_patches",
]
