"""Every kernel at the batch of training and at one that fills a GPU, against a device copy in the same run.

In a CUDA graph of many calls what counts is the device; as a call, the host. At batch 16 all operands stay in a large
GPU's L2 cache, so that its copy, of what does not, can be beaten; at batch 1024 they do not.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from eco_fast.proof.kernels import kernels_must_run
from eco_fast.proof.machine import seconds_of
from eco_fast.proof.outcome import Evidence
from eco_fast.proof.stage import Stage
from eco_kernels import bicubic_downsample, downsample_mix, eco_loss_with_grad, gather_mix, gather_patches

SCALE, PATCH = 4, 192  # of HR
SIDES = 480, 324  # of the HR images in the store
CALLS = 20  # in a graph
GOALS = {"gather_patches": 50, "eco_loss_with_grad bf16": 85, "eco_loss_with_grad fp32": 85}  # % of a copy, batch 1024


class Case(NamedTuple):
    """A kernel with its operands. `bytes`: each input once, each output once."""

    name: str
    bytes: int
    call: Callable[[], object]


def contest(stage: Stage) -> Evidence:
    """Microseconds, GB/s and share of a copy's bandwidth."""
    device = torch.device(stage.device)
    if device.type == "cuda":
        kernels_must_run(device)
    copy = _copy_gb_per_s(device, (4 if stage.small else 512) << 20)
    stage.say("copy", benchmark="kernel-speed", gb_per_s=round(copy, 1))
    count, missed = 0, []
    for batch in (2,) if stage.small else (16, 1024):
        for case in cases(batch, device):
            call_us = 1e6 * seconds_of(case.call, 0.2)
            us = call_us if stage.small else 1e6 * _in_a_graph(case.call)
            speed = case.bytes / us / 1e3
            share, goal = 100 * speed / copy, GOALS.get(case.name) if batch == 1024 else None
            stage.say(
                f"{case.name}, batch {batch}", benchmark="kernel-speed", us=round(us, 2), call_us=round(call_us, 2),
                bytes=case.bytes, gb_per_s=round(speed, 1), percent_of_copy=round(share, 1),
                floor_us=round(case.bytes / copy / 1e3, 2), goal=goal and f">= {goal} %",
            )  # fmt: skip
            count += 1
            missed += [case.name] if goal and share < goal else []
    return Evidence(count, detail=f"{count} measured" + (f"; goals missed: {', '.join(missed)}" if missed else ""))


def cases(batch: int, device: torch.device) -> Iterator[Case]:
    """One line per kernel."""
    generator = torch.Generator(device).manual_seed(0)
    count, (height, width), side = batch, SIDES, PATCH // SCALE  # an image per patch: none is read twice

    def draw(high: int, size: tuple[int, ...], dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.randint(high, size, generator=generator, dtype=dtype, device=device)

    hr_size, lr_size = height * width * 3, height * width * 3 // SCALE**2
    hr, mu, lr, mu_lr = (draw(256, (count * size,), torch.uint8) for size in (hr_size, hr_size, lr_size, lr_size))
    index, orientation = torch.randperm(batch, generator=generator, device=device), draw(8, (batch,))
    top, left = draw(height // SCALE - side + 1, (batch,)), draw(width // SCALE - side + 1, (batch,))
    offsets, widths = torch.arange(count, device=device) * hr_size, torch.full((count,), width, device=device)
    place = (index, SCALE * top, SCALE * left, orientation, PATCH)
    lr_place = (offsets // SCALE**2, widths // SCALE, index, top, left, orientation, side)
    alpha = torch.full((), 0.3, device=device)
    values = batch * 3 * PATCH**2
    x, y = (gather_patches(store, offsets, widths, *place).permute(0, 3, 1, 2) for store in (hr, mu))
    small = gather_patches(lr, *lr_place).permute(0, 3, 1, 2)
    low, full = ((y / 255).to(dtype, memory_format=torch.channels_last) for dtype in (torch.bfloat16, torch.float32))

    yield Case("gather_patches", 2 * values, lambda: gather_patches(hr, offsets, widths, *place))
    yield Case("gather_mix", 6 * values // SCALE**2, lambda: gather_mix(lr, mu_lr, *lr_place, alpha))
    yield Case("bicubic_downsample", values + values // SCALE**2, lambda: bicubic_downsample(y, SCALE))
    yield Case("downsample_mix", values + 5 * values // SCALE**2, lambda: downsample_mix(y, small, alpha, SCALE))
    yield Case("eco_loss_with_grad bf16", 6 * values, lambda: eco_loss_with_grad(low, x, y, alpha, scale_factor=255.0))
    yield Case(
        "eco_loss_with_grad fp32", 10 * values, lambda: eco_loss_with_grad(full, x, y, alpha, scale_factor=255.0)
    )


def _copy_gb_per_s(device: torch.device, size: int) -> float:
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)  # some GPUs are faster on zeros
    target = torch.empty_like(source)
    return 2 * size / seconds_of(lambda: target.copy_(source)) / 1e9


def _in_a_graph(call: Callable[[], object]) -> float:
    """Seconds of a call among many in a graph."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            call()
    return seconds_of(graph.replay, 0.3) / CALLS
