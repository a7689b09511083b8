"""Numbers for every step, made and moved to the device in blocks of many steps."""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

BLOCK = 512
"""Most steps whose rows are made at a time: by itself a plan takes 64 us, in a block 3."""
KEPT = 3
"""Blocks: sources read ahead."""

Row = Callable[[int], Tensor]
"""Step -> what is needed for it; a view of its block."""


def rows_on(device: torch.device | str, make: Callable[[int], Tensor], block: int = BLOCK) -> Row:
    """Rows on a device, to which they go by copies that nobody waits for.

    Args:
        device: Where they are wanted.
        make: Number of a block -> its rows `(block, ...)` on the host; the same for every call.
        block: Steps.
    """

    @lru_cache(maxsize=KEPT)
    def moved(number: int) -> Tensor:
        rows = make(number)
        return (rows.pin_memory() if torch.device(device).type == "cuda" else rows).to(device, non_blocking=True)

    def row(step: int) -> Tensor:
        number, place = divmod(step, block)
        return moved(number)[place]

    return row
