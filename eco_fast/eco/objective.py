"""The training modes: how much of the real pair the student's input and target hold.

Every mode is a pair of weights on the same two pairs, the real one (x, y) and the centroid one (down(mu), mu):

    input  = a_in  * x + (1 - a_in)  * down(mu)
    target = a_out * y + (1 - a_out) * mu

| mode         | a_in                | a_out       | paper                                        |
|--------------|---------------------|-------------|----------------------------------------------|
| vanilla      | 1                   | 1           | the usual training                           |
| kd           | 1                   | 0           | Eq. 9                                        |
| eco-centroid | 0                   | 0           | Eq. 11                                       |
| eco          | alpha               | alpha       | Eq. 14                                       |
| alpha-sample | 1 with chance alpha | the same    | the published variant without mixing         |
"""

from typing import NamedTuple

import torch
from torch import Tensor

MODES = ("vanilla", "kd", "eco-centroid", "eco", "alpha-sample")


class Blend(NamedTuple):
    """The weights of the real pair in one batch.

    `input` and `target` are fp32 tensors, 0-dim or one per sample `(B,)`. The four flags say which images the batch
    reads at all: a pair whose weight is 0 is never fetched.
    """

    input: Tensor
    target: Tensor
    needs_lr: bool
    needs_centroid_lr: bool
    needs_hr: bool
    needs_centroid: bool


def needs_teacher(mode: str) -> bool:
    """Whether `mode` uses centroids at any time."""
    return mode != "vanilla"


def uses_alpha(mode: str) -> bool:
    """Whether the schedule of alpha changes anything in `mode`."""
    return mode in ("eco", "alpha-sample")


def blend(mode: str, alpha: float, uniform: Tensor) -> Blend:
    """The weights of one batch.

    Args:
        mode: One of `MODES`.
        alpha: Weight of the real pair at this step, in [0, 1].
        uniform: `(B,)` numbers in [0, 1), one per sample; `alpha-sample` draws with them. The weights lie beside it.

    Raises:
        ValueError: Unknown mode.
    """
    if mode == "alpha-sample":
        real = (uniform < alpha).to(torch.float32)
        any_real, any_centroid = alpha > 0, alpha < 1
        return Blend(real, real, any_real, any_centroid, any_real, any_centroid)
    weights = {"vanilla": (1.0, 1.0), "kd": (1.0, 0.0), "eco-centroid": (0.0, 0.0), "eco": (alpha, alpha)}
    if mode not in weights:
        raise ValueError(f"unknown mode {mode!r}; one of {', '.join(MODES)}")
    a_in, a_out = weights[mode]
    real_in, real_out = (torch.full((), a, device=uniform.device) for a in (a_in, a_out))  # filled there, not copied
    return Blend(real_in, real_out, a_in > 0, a_in < 1, a_out > 0, a_out < 1)
