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

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

MODES = ("vanilla", "kd", "eco-centroid", "eco", "alpha-sample")


class Blend(NamedTuple):
    """The weights of the real pair in one batch: fp32 tensors, 0-dim or one per sample `(B,)`."""

    input: Tensor
    target: Tensor


def needs_teacher(mode: str) -> bool:
    """Whether `mode` uses centroids at any time."""
    return mode != "vanilla"


def uses_alpha(mode: str) -> bool:
    """Whether the schedule of alpha changes anything in `mode`."""
    return mode in ("eco", "alpha-sample")


def reads(mode: str, alpha: float) -> tuple[str, ...]:
    """The images that a batch reads, of "lr", "centroid_lr", "hr" and "centroid": one whose weight is 0 is left out.

    Args:
        mode: One of `MODES`.
        alpha: Weight of the real pair at this step, in [0, 1].

    Raises:
        ValueError: Unknown mode.
    """
    a_in, a_out = _weights(mode, alpha)
    weights = {"lr": a_in, "centroid_lr": 1 - a_in, "hr": a_out, "centroid": 1 - a_out}
    return tuple(kind for kind, weight in weights.items() if weight > 0)


def blends(mode: str, alphas: Sequence[float], uniform: Tensor) -> Tensor:
    """The weights of `n` batches, fp32 `(n, 2)` or, one per sample, `(n, 2, B)`: `Blend(*row)` is the one of a batch.

    Args:
        mode: One of `MODES`.
        alphas: Weight of the real pair at each of their steps, in [0, 1].
        uniform: `(n, B)` numbers in [0, 1), one per sample; `alpha-sample` draws with them.

    Raises:
        ValueError: Unknown mode.
    """
    if mode == "alpha-sample":
        real = (uniform < torch.tensor(alphas, dtype=uniform.dtype).unsqueeze(1)).float()
        return torch.stack((real, real), dim=1)
    return torch.tensor([_weights(mode, alpha) for alpha in alphas])


def _weights(mode: str, alpha: float) -> tuple[float, float]:
    """Weights of the real image in the input and in the target; of `alpha-sample` the chances to take it."""
    weights = {
        "vanilla": (1.0, 1.0),
        "kd": (1.0, 0.0),
        "eco-centroid": (0.0, 0.0),
        "eco": (alpha, alpha),
        "alpha-sample": (alpha, alpha),
    }
    if mode not in weights:
        raise ValueError(f"unknown mode {mode!r}; one of {', '.join(MODES)}")
    return weights[mode]
