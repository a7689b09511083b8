"""The operations as Triton kernels: the fast path on NVIDIA GPUs, with the functions of `eco_kernels.cpu`.

Arguments are checked by `eco_kernels.functional` before they come here.
"""

from eco_kernels.triton_bicubic_downsample import bicubic_downsample
from eco_kernels.triton_downsample_mix import downsample_mix
from eco_kernels.triton_eco_l1 import eco_l1_with_grad
from eco_kernels.triton_gather import gather_mix, gather_patches

__all__ = ["bicubic_downsample", "downsample_mix", "eco_l1_with_grad", "gather_mix", "gather_patches"]
