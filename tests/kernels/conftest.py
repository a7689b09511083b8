"""What the kernel tests share: the interpreter's process, fenced buffers and grids of cases.

The kernels run in Triton's interpreter, which must be switched on before they are imported and cannot compile them in
the same process. So `test_triton_*.py` are collected only under TRITON_INTERPRET=1; `test_interpreter.py` runs them so.
"""

import os
from collections.abc import Callable, Iterator
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED else ["test_triton_*.py"]

_EMPTY = torch.empty
_FENCE = 256
_CANARY = 0xA5


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "grid(**values): all combinations; those not needed to see every pair are `full`"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("grid")
    if marker is None:
        return
    cases = list(product(*marker.kwargs.values()))
    chosen = set(pairwise(cases))
    parameters = [pytest.param(*case, marks=() if case in chosen else pytest.mark.full) for case in cases]
    metafunc.parametrize(list(marker.kwargs), parameters)


def pairwise(cases: list[tuple]) -> Iterator[tuple]:
    """A few of the cases in which each two values that occur together in any case occur together."""
    pairs = {case: set(combinations(enumerate(case), 2)) for case in cases}
    missing = set().union(*pairs.values())
    while missing:
        best = max(cases, key=lambda case: len(pairs[case] & missing))
        missing -= pairs[best]
        yield best


class Fences:
    """Buffers with canaries on both sides. What is to be written starts as NaN, or 0xA5 for bytes."""

    def __init__(self) -> None:
        self._buffers: list[tuple[Tensor, int]] = []

    def place(self, shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        elements = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        length = elements * dtype.itemsize
        buffer = torch.full((length + 2 * _FENCE,), _CANARY, dtype=torch.uint8)
        if dtype.is_floating_point:
            buffer[_FENCE : _FENCE + length] = 0xFF
        self._buffers.append((buffer, length))
        return buffer[_FENCE : _FENCE + length].view(dtype).as_strided(shape, stride)

    def copy(self, x: Tensor) -> Tensor:
        """The same values and strides, in a fenced buffer."""
        return self.place(tuple(x.shape), x.stride(), x.dtype).copy_(x)

    def empty(self, shape: tuple[int, ...], **options: Any) -> Tensor:
        """In place of `torch.empty`."""
        model = _EMPTY(shape, **options)
        return self.place(tuple(model.shape), model.stride(), model.dtype)

    def check(self) -> None:
        for buffer, length in self._buffers:
            assert (buffer[:_FENCE] == _CANARY).all(), "written before a buffer"
            assert (buffer[_FENCE + length :] == _CANARY).all(), "written behind a buffer"


@pytest.fixture
def fences(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fences]:
    """Every `torch.empty` of the test is fenced and poisoned; the canaries are looked at when it ends."""
    result = Fences()
    monkeypatch.setattr(torch, "empty", result.empty)
    yield result
    result.check()


@pytest.fixture(autouse=INTERPRETED)
def bf16_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter truncates fp32 to bf16, hardware rounds to nearest even: do as hardware does."""
    from triton.runtime import interpreter

    original: Callable = interpreter._convert_float

    def convert(data: np.ndarray, source: object, target: object, rounding: object) -> np.ndarray:
        if str(source) == "fp32" and str(target) == "bf16":
            return torch.from_numpy(np.ascontiguousarray(data)).bfloat16().view(torch.int16).numpy().view(np.uint16)
        return original(data, source, target, rounding)

    monkeypatch.setattr(interpreter, "_convert_float", convert)


@pytest.fixture(autouse=INTERPRETED)
def bf16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter multiplies matrices of bf16 as if their bits were whole numbers: give it fp32."""
    import triton.language as tl
    from triton.runtime import interpreter

    original: Callable = interpreter.InterpreterBuilder.create_dot

    def widened(x: Any) -> Any:
        if x.dtype.scalar != tl.bfloat16:
            return x
        return interpreter.TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self: object, a: Any, b: Any, *others: object) -> Any:
        return original(self, widened(a), widened(b), *others)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
