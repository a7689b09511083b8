"""The truth the tests compare with: the public functions in integer and float64 arithmetic, written to be read.

Signatures are those of `eco_kernels`. Results keep uint8 where the public function gives uint8 and are float64
elsewhere, so that a test sees the rounding of the fast form and not of this one. What changes its arguments there
gives new tensors here.
"""

from eco_kernels.downsample.reference import bicubic_downsample, cubic, imresize, to_8_bit
from eco_kernels.gather.reference import gather_mix, gather_patches, orient, unit_range
from eco_kernels.loss.reference import eco_loss, eco_loss_with_grad
from eco_kernels.mix.reference import downsample_mix
from eco_kernels.tail.reference import linear_tail
from eco_kernels.update.reference import adam_update, judge_update, lamb_update

__all__ = [
    "adam_update",
    "bicubic_downsample",
    "cubic",
    "downsample_mix",
    "eco_loss",
    "eco_loss_with_grad",
    "gather_mix",
    "gather_patches",
    "imresize",
    "judge_update",
    "lamb_update",
    "linear_tail",
    "orient",
    "to_8_bit",
    "unit_range",
]
