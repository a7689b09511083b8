"""Traces the Triton launches without a GPU and prints, as JSON, what PyTorch sees of them.

A stub takes the place of Triton's driver, which only says for which device to compile. The backend records the graphs
and runs nothing: this shows how a call is traced, not that it works on a GPU. Run in a process of its own.
"""

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.utils._triton
import triton
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd

from eco_kernels.downsample.kernel import bicubic_downsample
from eco_kernels.gather import Places
from eco_kernels.gather.kernel import gather_mix, gather_patches
from eco_kernels.loss.kernel import eco_loss_with_grad
from eco_kernels.mix.kernel import downsample_mix
from eco_kernels.offline import NamedDriver
from eco_kernels.tail.kernel import convolve, convolve_backward


class Captured(Exception):
    """Stops a call once its graph is known."""


def launches(function: Callable, *args: Any, **kwargs: Any) -> list[list[str]]:
    """What each launch of a call writes: names of the kernel's arguments that lie in fresh memory.

    Raises:
        AssertionError: The call is not one graph, or changes memory that is not its own.
    """
    graphs: list[torch.fx.GraphModule] = []

    def record(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable:
        graphs.append(graph)
        raise Captured

    torch.compiler.reset()
    try:
        torch.compile(function, fullgraph=True, backend=aot_autograd(fw_compiler=record))(*args, **kwargs)
    except Exception:
        if not graphs:
            raise
    (graph,) = graphs
    found = []
    for node in graph.graph.nodes:
        if "triton_kernel_wrapper" in str(node.target):
            written = node.kwargs["tensors_to_clone"]
            origins = {name: str(node.kwargs["kwargs"][name].target) for name in written}
            assert all(origin.startswith("aten.empty") for origin in origins.values()), origins
            found.append(sorted(written))
        assert not getattr(getattr(node.target, "_schema", None), "is_mutable", False), node
    return found


def calls() -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """The function of every operation that launches kernels, with arguments on the CPU."""
    sr, hr = torch.zeros(2, 3, 16, 16, dtype=torch.bfloat16), torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    lr, alpha = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor(0.5)
    store, zero = torch.zeros(3072, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    places = Places(zero[:1], zero[:1] + 32, zero, zero, zero, zero, 16, 3)
    cut = (zero, zero, 4, zero)
    features, kernels = torch.zeros(2, 16, 8, 8, dtype=torch.bfloat16), torch.zeros(3, 3, 12, 5, 5, 16)
    return {
        "gather_patches": (gather_patches, (store, places)),
        "gather_mix": (gather_mix, (store, store, places, alpha, torch.float32)),
        "bicubic_downsample": (bicubic_downsample, (sr, 2, "matlab", "symmetric")),
        "downsample_mix": (downsample_mix, (hr, lr, alpha, 2, *cut, "matlab", "symmetric", torch.float32)),
        "eco_loss_with_grad": (eco_loss_with_grad, (sr, hr, hr, alpha, "l1", torch.tensor(255.0), None)),
        "linear_tail": (convolve, (features, kernels, kernels[..., 0, 0, 0], 2)),
        "linear_tail_backward": (convolve_backward, (sr.float(), features, kernels, 2)),
    }


def main() -> None:
    triton.runtime.driver.set_active(NamedDriver(90))
    torch.utils._triton.has_triton = lambda *_: True
    found = {name: launches(function, *args) for name, (function, args) in calls().items()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
