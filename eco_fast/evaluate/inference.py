"""One image through a network, 8 bit in and 8 bit out, and the state a network is evaluated in."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eco_fast.errors import UserError
from eco_fast.evaluate.tiles import SMALLEST_TILE, overlap_of, tile_that_fits, tiles

OnItem = Callable[[int, int], None]  # done, total
Forward = Callable[[Tensor], Tensor]
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def super_resolve(
    network: nn.Module,
    lr: NDArray[np.uint8],
    *,
    precision: str = "fp32",
    device: torch.device | str | None = None,
    tile: int | None = None,
    ensemble: bool = False,
    progress: OnItem | None = None,
) -> NDArray[np.uint8]:
    """Super-resolve an image, or several of one size together, in evaluation mode and without gradients.

    The network's own mode is restored. An image goes through the network as a whole where memory allows it, else in
    tiles (see `tiles`).

    Args:
        network: Maps float (1, 3, h, w) in [0, 1] to (1, 3, scale h, scale w).
        lr: uint8 (h, w, 3), or (n, h, w, 3).
        precision: "fp32" (no autocast, no TF32), "bf16" or "fp16" (autocast).
        device: Where the network is; by default that of its first parameter.
        tile: Side of the tiles in LR pixels; None chooses.
        ensemble: The mean over the image's eight orientations (self-ensemble; Timofte et al., CVPR 2016).
        progress: Called with (tiles done, tiles).

    Returns:
        uint8 (scale h, scale w, 3), or (n, scale h, scale w, 3): clamped and rounded half up.

    Raises:
        ValueError: `lr` is not uint8 (h, w, 3) or (n, h, w, 3), or the precision is unknown.
        UserError: The output is not finite.
    """
    if lr.dtype != np.uint8 or lr.ndim not in (3, 4) or lr.shape[-1] != 3:
        raise ValueError(f"lr must be uint8 (h, w, 3), not {lr.dtype} {lr.shape}")
    if lr.ndim == 3:
        return super_resolve(
            network, lr[None], precision=precision, device=device, tile=tile, ensemble=ensemble, progress=progress
        )[0]
    device = device_of(network) if device is None else torch.device(device)
    with evaluating(network, precision, device):
        forward: Forward = (lambda x: _mean_of_eight(network, x)) if ensemble else network
        overlap = overlap_of(network)
        side = tile or tile_that_fits(network, lr.shape[1], lr.shape[2], device)
        while True:
            try:
                return _in_tiles(forward, lr, side, overlap, device, progress)
            except torch.OutOfMemoryError:
                pass  # the estimate was too low; what the exception holds is let go first
            except FloatingPointError:
                fix = "check its weights" if precision == "fp32" else f"check its weights, or leave {precision} out"
                raise UserError(f"the network's output is not finite; {fix}") from None
            side = _smaller(side, lr)


def refuse_wrong_choices(precision: str, tile: int | None) -> None:
    """Check what a person chose for `super_resolve` before any work is done.

    Raises:
        UserError: There is no such precision, or the tile has no size.
    """
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}; take one of {', '.join(PRECISIONS)}")
    if tile is not None and tile < 1:
        raise UserError(f"--tile {tile} is no size; give LR pixels, or leave it out")


def _in_tiles(
    forward: Forward,
    lr: NDArray[np.uint8],
    side: int | None,
    overlap: int,
    device: torch.device,
    progress: OnItem | None,
) -> NDArray[np.uint8]:
    count, height, width, _ = lr.shape
    if side is None or side >= max(height, width):
        return _whole(forward, lr, device)
    parts = list(tiles(height, width, side, overlap))
    sr: NDArray[np.uint8] | None = None
    for done, part in enumerate(parts, start=1):
        window = _whole(forward, lr[:, part.top :, part.left :][:, : part.height, : part.width], device)
        scale = window.shape[1] // part.height
        if sr is None:
            sr = np.empty((count, height * scale, width * scale, 3), dtype=np.uint8)
        inner = window[:, part.inner_top * scale :, part.inner_left * scale :]
        target = sr[:, (part.top + part.inner_top) * scale :, (part.left + part.inner_left) * scale :]
        rows, columns = part.inner_height * scale, part.inner_width * scale
        target[:, :rows, :columns] = inner[:, :rows, :columns]
        if progress is not None:
            progress(done, len(parts))
    assert sr is not None
    return sr


def _whole(forward: Forward, lr: NDArray[np.uint8], device: torch.device) -> NDArray[np.uint8]:
    # HWC seen as NCHW is channels_last already: one copy to the device, one to float.
    pixels = torch.from_numpy(np.require(lr, requirements=["C", "W"])).to(device)
    sr = forward(pixels.permute(0, 3, 1, 2).float().div_(255)).float()
    if not torch.isfinite(sr).all():
        raise FloatingPointError
    rounded = sr.clamp(0, 1).mul_(255).add_(0.5).to(torch.uint8)
    return rounded.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def _mean_of_eight(network: nn.Module, x: Tensor) -> Tensor:
    """Turn the image, super-resolve it, turn the result back; orientations as in the sampler's plans."""
    total: Tensor | None = None
    for turn in range(8):
        flips = [axis for axis, bit in ((3, 1), (2, 2)) if turn & bit]
        turned = x.flip(flips).transpose(2, 3) if turn & 4 else x.flip(flips)
        sr = network(turned.contiguous(memory_format=torch.channels_last)).float()
        back = (sr.transpose(2, 3) if turn & 4 else sr).flip(flips)
        total = back if total is None else total.add_(back)
    assert total is not None
    return total.div_(8)


def _smaller(side: int | None, lr: NDArray[np.uint8]) -> int:
    """Half the side of the tiles.

    Raises:
        UserError: They are as small as they get.
    """
    torch.cuda.empty_cache()
    half = (max(lr.shape[1:3]) if side is None else side) // 2
    if half < SMALLEST_TILE:
        raise UserError("out of memory with the smallest tiles; close what else runs on the device, or take a CPU")
    return half


def device_of(network: nn.Module) -> torch.device:
    """Device of the first parameter or buffer; the CPU for a network without any."""
    tensors = (*network.parameters(), *network.buffers())
    return tensors[0].device if tensors else torch.device("cpu")


@contextmanager
def evaluating(network: nn.Module, precision: str, device: torch.device) -> Iterator[None]:
    """Evaluation mode, inference mode and the given precision inside; everything as it was afterwards.

    Modes are restored module by module: a network with a part frozen in evaluation mode keeps it.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    training = [module for module in network.modules() if module.training]
    low = None if precision == "fp32" else PRECISIONS[precision]
    with torch.inference_mode(), torch.autocast(device.type, dtype=low, enabled=low is not None), _cuda_settings():
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True


@contextmanager
def _cuda_settings() -> Iterator[None]:
    """No TF32, and no search for the fastest algorithm, which every new size of image would start again."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    matmul.allow_tf32 = cudnn.allow_tf32 = cudnn.benchmark = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before
