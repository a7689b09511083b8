"""What a compiled network launches in a training step on a GPU, counted in the code that Inductor writes, without one.

    python benchmarks/compiled_launches.py [--csv FILE] [NETWORK-xSCALE ...]

Forward and backward pass are traced on the CPU, as `run.compile` traces them, in bf16. Then their tensors are said to
lie on an H100, and Inductor lowers, fuses and schedules for it; nothing is compiled or run. A kernel of Triton is one
launch, a convolution one, its gradients one each for input and weight (those of biases are kernels), and `linear_tail`
what it launches itself. Beside these come batch, loss, gathering of gradients and update, as in `launches.py`. What
cuDNN launches beside a convolution is not counted.
"""

import argparse
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import triton
from rows import write_figures
from steps import CASES
from torch import Tensor
from torch._functorch.aot_autograd import aot_function
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._guards import detect_fake_mode
from torch._inductor import decomposition
from torch._inductor.debug import DebugContext
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch.func import functional_call
from torch.fx import GraphModule
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from eco_fast.models import build
from eco_fast.models.tail import Tail
from eco_fast.train.machine import autocast
from eco_fast.train.parameters import Parameters, rounded_by_autocast
from eco_kernels.offline import NamedDriver

NETWORKS = ("edsr-tiny-x2", "edsr-baseline-x4")
BATCH = 2
_GPU = torch.device("cuda:0")
_H100 = SimpleNamespace(
    name="NVIDIA H100", major=9, minor=0, multi_processor_count=132, warp_size=32, regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048, max_threads_per_block=1024, shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448, shared_memory_per_multiprocessor=233472, L2_cache_size=50 << 20,
    total_memory=80 << 30, gcnArchName="",
)  # fmt: skip


@contextmanager
def h100() -> Iterator[None]:
    """Inductor finds an H100 here."""
    cuda = "torch._dynamo.device_interface.CudaInterface"
    with ExitStack() as stack:
        for name, found in {
            "torch.cuda.is_available": True,
            "torch.cuda.device_count": 1,
            "torch.cuda.current_device": 0,
            "torch.cuda.get_device_properties": _H100,
            "torch.cuda.get_device_capability": (9, 0),
            f"{cuda}.get_device_properties": _H100,
            f"{cuda}.Worker.get_device_properties": _H100,
            f"{cuda}.get_compute_capability": 90,
        }.items():
            stack.enter_context(mock.patch(name, lambda *_, found=found, **__: found))
        yield


def counted(launched: dict[str, int], part: str) -> Callable[[GraphModule, list[Any]], GraphModule]:
    """A compiler of one pass that counts what the code of Inductor launches."""

    def count(traced: GraphModule, inputs: list[Any]) -> GraphModule:
        code = code_for_gpu(traced, inputs)
        kernels = len(re.findall(r"triton_\w+\.run\(", code))
        convolutions = code.count("extern_kernels.convolution(")
        gradients = 0
        for node in traced.graph.nodes:
            if node.target is torch.ops.aten.convolution_backward.default:
                gradients += sum(node.args[-1])
        launched[f"{part}: kernels"] = kernels
        launched[f"{part}: convolutions"] = convolutions + gradients
        return traced

    return count


def code_for_gpu(traced: GraphModule, inputs: list[Any]) -> str:
    """What Inductor writes for a traced pass if its tensors lie on a GPU."""
    graph, mode = GraphModule(traced, traced.graph.__deepcopy__({})), detect_fake_mode(inputs)
    for node in graph.graph.nodes:
        node.meta.pop("val", None)
        node.args = tuple(_GPU if isinstance(value, torch.device) else value for value in node.args)
        node.kwargs = {k: _GPU if isinstance(value, torch.device) else value for k, value in node.kwargs.items()}
    graph.recompile()
    with mode:
        moved = [
            torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=_GPU) if isinstance(x, Tensor) else x
            for x in inputs
        ]
    # A PyTorch without CUDA would say that convolutions there are channels first.
    layout = mock.patch("torch._C._conv_determine_backend_memory_format", lambda *_: torch.channels_last)
    with layout, torch.no_grad():
        FakeTensorProp(graph, mode).propagate_dont_convert_inputs(*moved)
        with h100(), DebugContext(), V.set_fake_mode(mode):
            lowering = GraphLowering(graph, example_inputs=moved, shape_env=None)
            with V.set_graph_handler(lowering):
                lowering.run(*moved)
                code: Any = lowering.codegen()[0]
    return str(getattr(code, "value", code))


def count_step(network_name: str) -> dict[str, int]:
    """Launches of forward and backward pass."""
    name, _, scale = network_name.rpartition("-x")
    patch = CASES[name][1]
    network = build(name, int(scale)).to(memory_format=torch.channels_last)
    x = torch.rand(BATCH, 3, patch, patch).to(memory_format=torch.channels_last)
    rounded = rounded_by_autocast(network, x, "bf16")
    read = Parameters(network, average=False, precision="bf16", rounded=rounded).read
    tensors = {**dict(read.named_parameters()), **dict(read.named_buffers())}

    def forward(x: Tensor, *values: Tensor) -> Tensor:
        with autocast("bf16", "cpu"):
            return functional_call(read, dict(zip(tensors, values, strict=True)), (x,)).float()

    launched: dict[str, int] = {}
    with mock.patch.object(decomposition, "is_gpu", lambda _: True):
        compiled = aot_function(
            forward,
            fw_compiler=counted(launched, "forward"),
            bw_compiler=counted(launched, "backward"),
            partition_fn=min_cut_rematerialization_partition,
            decompositions=decomposition.select_decomp_table(),
        )
        compiled(x, *tensors.values()).sum().backward()
    tail = next(module for module in network.modules() if isinstance(module, Tail))
    links = sum(isinstance(module, torch.nn.Conv2d) for module in tail.modules()) - 1
    again = max(0, links - 1)  # what follows all links but the last is made anew
    launched["forward: tail"], launched["backward: tail"] = 1 + 2 * links, 3 + 3 * links + 2 * again
    return launched


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS, metavar="NETWORK-xSCALE")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    triton.runtime.driver.set_active(NamedDriver(90))
    rows = []
    for network in options.networks:
        parts = count_step(network)
        rows.append({"network": network, **parts, "all": sum(parts.values())})
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    if options.csv is not None:
        write_figures(options.csv, rows)


if __name__ == "__main__":
    main()
