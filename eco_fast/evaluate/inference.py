"""One image through a network, as many bits out as in, and the state a network is evaluated in."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eco_fast.data.memory import free_memory, is_full, may_be_full
from eco_fast.errors import UserError
from eco_fast.evaluate.tiles import SMALLEST_TILE, overlap_of, peak_bytes, tile_that_fits, tiles

OnItem = Callable[[int, int], None]  # done, total
Forward = Callable[[Tensor], Tensor]
Depth = TypeVar("Depth", np.uint8, np.uint16)
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_ALWAYS_FITS = 128 * 128  # LR pixels
_PROBE = 48  # LR pixels a side
_needs: "WeakKeyDictionary[nn.Module, dict[tuple[str, bool], Needs]]" = WeakKeyDictionary()


class Needs(NamedTuple):
    """What a network's inference takes."""

    bytes_per_pixel: float  # of memory, per LR pixel
    scale: int


class Tiling(NamedTuple):
    """How an image goes through a network."""

    side: int | None  # of the tiles, LR pixels; None: as a whole
    number: int  # of the tiles
    free: int  # bytes of memory for the network's work; 0 where nothing was to be found out


def super_resolve(
    network: nn.Module,
    lr: NDArray[Depth],
    *,
    precision: str = "fp32",
    device: torch.device | str | None = None,
    tile: int | None = None,
    ensemble: bool = False,
    progress: OnItem | None = None,
) -> NDArray[Depth]:
    """Super-resolve an image, or several of one size together, in evaluation mode and without gradients.

    The network's own mode is restored. An image goes through the network as a whole where memory allows it, else in
    tiles (see `tiles`).

    Args:
        network: Maps float (1, 3, h, w) in [0, 1] to (1, 3, scale h, scale w).
        lr: uint8 or uint16 (h, w, 3), or (n, h, w, 3).
        precision: "fp32" (no autocast, no TF32), "bf16" or "fp16" (autocast).
        device: Where the network is; by default that of its first parameter.
        tile: Side of the tiles in LR pixels; None chooses.
        ensemble: The mean over the image's eight orientations (self-ensemble; Timofte et al., CVPR 2016).
        progress: Called with (tiles done, tiles).

    Returns:
        (scale h, scale w, 3), or (n, scale h, scale w, 3), of the dtype of `lr`: clamped and rounded half up.

    Raises:
        ValueError: `lr` is not uint8 or uint16 (h, w, 3) or (n, h, w, 3), or the precision is unknown.
        UserError: The output is not finite, or memory does not suffice.
    """
    if lr.dtype not in (np.uint8, np.uint16) or lr.ndim not in (3, 4) or lr.shape[-1] != 3:
        raise ValueError(f"lr must be uint8 or uint16 (h, w, 3), not {lr.dtype} {lr.shape}")
    if lr.ndim == 3:
        return super_resolve(
            network, lr[None], precision=precision, device=device, tile=tile, ensemble=ensemble, progress=progress
        )[0]
    device = device_of(network) if device is None else torch.device(device)
    with evaluating(network, precision, device), _finite(precision):
        forward = _forward(network, ensemble)
        overlap = overlap_of(network)
        side = plan_tiles(network, lr, precision=precision, device=device, tile=tile, ensemble=ensemble).side
        while True:
            try:
                return _in_tiles(forward, lr, side, overlap, device, progress)
            except (RuntimeError, MemoryError) as error:
                if not (is_full(error) or (may_be_full(error) and _half(side, lr) >= SMALLEST_TILE)):
                    raise
                # The estimate was too low; what the exception holds is let go first.
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


def plan_tiles(
    network: nn.Module,
    lr: NDArray[Any],
    *,
    precision: str = "fp32",
    device: torch.device | str | None = None,
    tile: int | None = None,
    ensemble: bool = False,
) -> Tiling:
    """How `super_resolve` would begin, with the same arguments, at this moment's free memory."""
    height, width = lr.shape[-3:-1]
    if tile is not None:
        return _tiling(network, height, width, tile, 0)
    if height * width <= _ALWAYS_FITS:
        return Tiling(None, 1, 0)
    device = device_of(network) if device is None else torch.device(device)
    with evaluating(network, precision, device), _finite(precision):
        needs = _measured(network, precision, device, ensemble)
    free = free_memory(device)
    if device.type == "cpu":  # where the result is kept too
        free -= lr.nbytes * needs.scale**2
    images = lr.size // (3 * height * width)
    side = tile_that_fits(height, width, overlap_of(network), images * needs.bytes_per_pixel, free)
    return _tiling(network, height, width, side, free)


def _tiling(network: nn.Module, height: int, width: int, side: int | None, free: int) -> Tiling:
    if side is None or side >= max(height, width):
        return Tiling(None, 1, free)
    return Tiling(side, len(list(tiles(height, width, side, overlap_of(network)))), free)


def _measured(network: nn.Module, precision: str, device: torch.device, ensemble: bool) -> Needs:
    """What inference takes, measured once on a small image."""
    known = _needs.setdefault(network, {})
    if (precision, ensemble) not in known:
        forward = _forward(network, ensemble)
        made: list[NDArray[np.uint8]] = []
        small = np.zeros((1, _PROBE, _PROBE, 3), dtype=np.uint8)
        peak = peak_bytes(lambda: made.append(_whole(forward, small, device)))
        known[precision, ensemble] = Needs(peak / _PROBE**2, made[0].shape[1] // _PROBE)
    return known[precision, ensemble]


def _forward(network: nn.Module, ensemble: bool) -> Forward:
    return (lambda x: _mean_of_eight(network, x)) if ensemble else network


def _in_tiles(
    forward: Forward,
    lr: NDArray[Depth],
    side: int | None,
    overlap: int,
    device: torch.device,
    progress: OnItem | None,
) -> NDArray[Depth]:
    count, height, width, _ = lr.shape
    if side is None or side >= max(height, width):
        return _whole(forward, lr, device)
    parts = list(tiles(height, width, side, overlap))
    sr: NDArray[Depth] | None = None
    for done, part in enumerate(parts, start=1):
        window = _whole(forward, lr[:, part.top :, part.left :][:, : part.height, : part.width], device)
        scale = window.shape[1] // part.height
        if sr is None:
            sr = np.empty((count, height * scale, width * scale, 3), dtype=lr.dtype)
        inner = window[:, part.inner_top * scale :, part.inner_left * scale :]
        target = sr[:, (part.top + part.inner_top) * scale :, (part.left + part.inner_left) * scale :]
        rows, columns = part.inner_height * scale, part.inner_width * scale
        target[:, :rows, :columns] = inner[:, :rows, :columns]
        if progress is not None:
            progress(done, len(parts))
    assert sr is not None
    return sr


def _whole(forward: Forward, lr: NDArray[Depth], device: torch.device) -> NDArray[Depth]:
    peak, dtype = (255, torch.uint8) if lr.dtype == np.uint8 else (65535, torch.uint16)
    # HWC seen as NCHW is channels_last already: one copy to the device, one to float.
    pixels = torch.from_numpy(np.require(lr, requirements=["C", "W"])).to(device)
    sr = forward(pixels.permute(0, 3, 1, 2).float().div_(peak)).float()
    if not torch.isfinite(torch.stack(torch.aminmax(sr))).all():
        raise FloatingPointError
    rounded = sr.clamp(0, 1).mul_(peak).add_(0.5).to(dtype)
    pixels_out: NDArray[Depth] = rounded.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return pixels_out


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


@contextmanager
def _finite(precision: str) -> Iterator[None]:
    """Say in one line that a network's output inside was not finite."""
    try:
        yield
    except FloatingPointError:
        fix = "check its weights" if precision == "fp32" else f"check its weights, or leave {precision} out"
        raise UserError(f"the network's output is not finite; {fix}") from None


def _smaller(side: int | None, lr: NDArray[Any]) -> int:
    """Half the side of the tiles.

    Raises:
        UserError: They are as small as they get.
    """
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = _half(side, lr)
    if half < SMALLEST_TILE:
        raise UserError("out of memory with the smallest tiles; close other programs, or cut the image into parts")
    return half


def _half(side: int | None, lr: NDArray[Any]) -> int:
    return int(max(lr.shape[1:3]) if side is None else side) // 2


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
