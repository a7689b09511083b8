"""Figures from a profiler's trace, on traces that are made here."""

import gpu_trace
import pytest
from gpu_trace import Kernel


def event(name: str, stream: int, start: float, duration: float, category: str = "kernel") -> dict:
    return {"cat": category, "name": name, "ts": start, "dur": duration, "args": {"stream": stream}}


TRACE = {
    "traceEvents": [
        event("conv", 7, 30, 10),
        event("conv", 7, 0, 20),
        event("teacher", 9, 15, 10),
        event("copy", 9, 60, 5, "gpu_memcpy"),
        event("aten::conv", 0, 0, 99, "cpu_op"),
        {"ph": "M", "name": "process_name", "args": {"name": "python"}},
    ]
}


def test_kernels_of_a_trace_are_those_of_the_device_in_order() -> None:
    kernels = gpu_trace.read_trace(TRACE)
    assert [(k.name, k.stream, k.start, k.end) for k in kernels] == [
        ("conv", 7, 0, 20),
        ("teacher", 9, 15, 25),
        ("conv", 7, 30, 40),
        ("copy", 9, 60, 65),
    ]


def test_time_of_several_at_once_counts_once() -> None:
    assert gpu_trace.busy_us(gpu_trace.read_trace(TRACE)) == 25 + 10 + 5
    inside = [Kernel("long", 1, 0, 100), Kernel("short", 2, 10, 20), Kernel("after", 1, 90, 110)]
    assert gpu_trace.busy_us(inside) == 110
    assert gpu_trace.busy_us([]) == 0


def test_the_longest_are_counted_by_name() -> None:
    assert gpu_trace.longest(gpu_trace.read_trace(TRACE), 2) == [("conv", 2, 30), ("teacher", 1, 10)]


def test_what_ran_beside_the_busiest_stream() -> None:
    assert gpu_trace.beside(gpu_trace.read_trace(TRACE)) == (15, 5)  # of the teacher's 10 us 5 ran beside `conv`
    assert gpu_trace.beside([Kernel("alone", 1, 0, 5)]) == (0, 0)
    assert gpu_trace.beside([]) == pytest.approx((0, 0))
