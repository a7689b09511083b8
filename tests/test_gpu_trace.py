"""Figures from a profiler's trace, on traces that are made here."""

from pathlib import Path

import gpu_trace
import pytest
from gpu_trace import Kernel


def event(name: str, stream: int, start: float, duration: float, number: int, category: str = "kernel") -> dict:
    arguments = {"stream": stream, "correlation": number}
    return {"cat": category, "name": name, "ts": start, "dur": duration, "args": arguments}


def launch(name: str, start: float, number: int, category: str = "cuda_runtime") -> dict:
    return event(name, 0, start, 1, number, category)


TRACE = {
    "traceEvents": [
        event("conv", 7, -30, 10, 1),  # before what counts
        {"cat": "user_annotation", "name": gpu_trace.COUNTED, "ts": -5, "dur": 100, "args": {}},
        event("conv", 7, 30, 10, 4),
        event("conv", 7, 0, 20, 2),
        event("teacher", 9, 15, 10, 3),
        event("copy", 9, 60, 5, 5, "gpu_memcpy"),
        event("aten::conv", 0, 0, 99, 2, "cpu_op"),
        launch("cudaLaunchKernel", -31, 1),
        launch("cudaLaunchKernel", -1, 2),
        launch("cuLaunchKernelEx", 2, 3, "cuda_driver"),
        launch("cudaGraphLaunch", 3, 4),
        launch("cudaMemcpyAsync", 4, 5),
        launch("cudaLaunchKernel", 5, 6),  # its kernel was not seen
        launch("cudaGraphLaunch", 5, 8),  # nor those of this one
        launch("cudaStreamSynchronize", 6, 7),
        launch("cudaLaunchHostFunc", 7, 9),  # on the host
        {"ph": "M", "name": "process_name", "args": {"name": "python"}},
    ]
}
KERNELS = gpu_trace.read_trace(TRACE).kernels


def test_kernels_of_a_trace_are_those_of_the_device_in_order() -> None:
    assert [(k.name, k.stream, k.start, k.end) for k in KERNELS] == [
        ("conv", 7, 0, 20),
        ("teacher", 9, 15, 25),
        ("conv", 7, 30, 40),
        ("copy", 9, 60, 65),
    ]


def test_launches_graphs_and_what_was_lost() -> None:
    assert gpu_trace.read_trace(TRACE)[1:] == (6, 2, 2)


def test_a_recording_without_a_gpu(tmp_path: Path) -> None:
    made = []
    trace = gpu_trace.record(made.append, 3, tmp_path / "trace.json.gz", "cpu")
    assert made == [6, 3] and trace == ([], 0, 0, 0)


def test_time_of_several_at_once_counts_once() -> None:
    assert gpu_trace.busy_us(KERNELS) == 25 + 10 + 5
    inside = [Kernel("long", 1, 0, 100), Kernel("short", 2, 10, 20), Kernel("after", 1, 90, 110)]
    assert gpu_trace.busy_us(inside) == 110
    assert gpu_trace.busy_us([]) == 0


def test_the_longest_are_counted_by_name() -> None:
    assert gpu_trace.longest(KERNELS, 2) == [("conv", 2, 30), ("teacher", 1, 10)]


def test_what_ran_beside_the_busiest_stream() -> None:
    assert gpu_trace.beside(KERNELS) == (15, 5)  # of the teacher's 10 us 5 ran beside `conv`
    assert gpu_trace.beside([Kernel("alone", 1, 0, 5)]) == (0, 0)
    assert gpu_trace.beside([]) == pytest.approx((0, 0))
    inside = [
        Kernel("main", 1, 0, 50),
        Kernel("main", 1, 60, 100),
        Kernel("other", 2, 40, 70),
        Kernel("late", 3, 200, 210),
    ]
    assert gpu_trace.beside(inside) == (40, 20)
    both = [Kernel("conv", 1, 0, 60), Kernel("its work space", 1, 50, 90), Kernel("other", 2, 40, 80)]
    assert gpu_trace.beside(both) == (40, 40)  # on one stream two may run at once
