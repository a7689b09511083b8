"""Operations of ECO training. The package stands alone: PyTorch, and Triton where there is one.

    gather          cuts oriented patches out of flat stores, and blends two stores: a step's `x`, `hr`, `centroid`
    downsample      MATLAB's bicubic `imresize`, bit for bit: stores, and `files`
    mix             the same on the teacher's output, blended with the real LR: a step's `x` with an online teacher
    loss            the pixel loss against the blended target, with its gradient
    tail            the linear end of a network, from features to the picture
    update          whether an update counts, and Adam, AdamW or LAMB with clipping, average and low copy of the weights

Each folder is one operation: `__init__` what users call (checks, operator), `cpu` plain PyTorch, `kernel` Triton,
`reference` the slow and readable truth that tests compare with. They share `dispatch` (who computes), `checks`,
`images`, `bicubic` (taps and borders), `filter` with `planes` (the bicubic's Triton half), `triton_common`; `offline`
compiles every kernel for every GPU without one. Start with `gather/kernel.py`. A new operation is a new folder, a
line here, in `reference` and in `offline`.
"""

from eco_kernels.downsample import bicubic_downsample
from eco_kernels.gather import gather_mix, gather_patches
from eco_kernels.loss import eco_loss, eco_loss_with_grad
from eco_kernels.mix import downsample_mix
from eco_kernels.tail import linear_tail
from eco_kernels.update import (
    Clip,
    Flat,
    Judgement,
    Segments,
    adam_update,
    first_blocks,
    judge_update,
    lamb_update,
)

__all__ = [
    "Clip",
    "Flat",
    "Judgement",
    "Segments",
    "adam_update",
    "bicubic_downsample",
    "downsample_mix",
    "eco_loss",
    "eco_loss_with_grad",
    "first_blocks",
    "gather_mix",
    "gather_patches",
    "judge_update",
    "lamb_update",
    "linear_tail",
]
