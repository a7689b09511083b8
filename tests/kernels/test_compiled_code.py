"""The gate on compiled code: no spills, few registers, wide accesses; compiled without a GPU."""

import os

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels cannot be compiled", allow_module_level=True)

import triton
import triton.language as tl

from eco_kernels.offline import ARCHITECTURES, DEFAULTS, Report, inspect, specialisations
from eco_kernels.triton_common import specialisation
from eco_kernels.triton_eco_l1 import KINDS

SPECIALISATIONS = {kernel.name: kernel for kernel in specialisations()}


def faults(report: Report) -> list[str]:
    """What is wrong with a compiled kernel."""
    found = []
    if report.spill_bytes or report.stack_bytes:
        found.append(f"spills: {report.spill_bytes} bytes, {report.stack_bytes} bytes of stack")
    # The second pass of the bicubic runs one warp per program, of which sm_86 holds 16 at most. So the assembler has
    # registers to spare there and takes up to 164 of them, where elsewhere it stays below 128.
    limit = 168 if report.arch == 86 and report.name.startswith("horizontal") else 128
    if report.registers > limit:
        found.append(f"{report.registers} registers")
    if report.shared_bytes > 48 * 1024:
        found.append(f"{report.shared_bytes} bytes of shared memory")
    narrow_loads, narrow_stores = report.loads - report.loads_128, report.stores - report.stores_128
    if report.name.split("-")[0] in KINDS and max(narrow_loads, narrow_stores) > 1:
        # The scalars, alpha and the partial sum, are the one of each that may be narrow.
        found.append(f"{narrow_loads} loads and {narrow_stores} stores are not of 128 bits")
    return found


def cases() -> list:
    def mark(name: str, arch: int) -> pytest.MarkDecorator:
        return pytest.mark.slow if name in DEFAULTS and arch in (80, 90, 120) else pytest.mark.full

    return [pytest.param(name, arch, marks=mark(name, arch)) for name in SPECIALISATIONS for arch in ARCHITECTURES]


def test_the_defaults_exist() -> None:
    assert SPECIALISATIONS.keys() >= DEFAULTS


@pytest.mark.parametrize(("name", "arch"), cases())
def test_compiled_code(name: str, arch: int) -> None:
    report = inspect(SPECIALISATIONS[name], arch)
    assert not faults(report), report


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(DEFAULTS))
def test_sizes_and_strides_of_one_compile(name: str) -> None:
    """A launch turns integers that are 1 into constants, which the interpreter does not show."""
    kernel = SPECIALISATIONS[name]
    ones = [argument for argument, kind in kernel.signature.items() if kind == "i32"]
    inspect(
        kernel._replace(
            signature=kernel.signature | dict.fromkeys(ones, "constexpr"),
            constexprs=kernel.constexprs | dict.fromkeys(ones, 1),
            divisibility={argument: 16 for argument in kernel.divisibility if argument not in ones},
        ),
        90,
    )


@triton.jit
def _spilling_kernel(x, out, COUNT: tl.constexpr):
    """Holds 64 x 32 sums per warp at once: far more than its registers."""
    columns = tl.arange(0, 4096)
    total = tl.zeros((4096,), tl.float32)
    product = tl.full((4096,), 1.0, tl.float32)
    for i in tl.static_range(COUNT):
        value = tl.load(x + i * 4096 + columns)
        total += value
        product *= value
    tl.store(out + columns, total)
    tl.store(out + 4096 + columns, product)


def test_the_gate_fails_for_a_kernel_that_spills() -> None:
    kernel = specialisation(
        "test",
        "spilling",
        _spilling_kernel,
        {"x": "*fp32", "out": "*fp32"},
        {"COUNT": 4},
        num_warps=1,
        outputs=8192,
        bytes=0,
    )
    report = inspect(kernel, 90)
    assert report.spill_bytes > 0
    assert any("spills" in fault for fault in faults(report))
