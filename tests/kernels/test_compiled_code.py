"""The gate on compiled code: no spills, few registers, wide accesses; compiled without a GPU."""

import os

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels cannot be compiled", allow_module_level=True)

import triton
import triton.language as tl

from eco_kernels.loss import KINDS
from eco_kernels.offline import ARCHITECTURES, DEFAULTS, Report, inspect, specialisations
from eco_kernels.triton_common import specialisation

SPECIALISATIONS = {kernel.name: kernel for kernel in specialisations()}

# Limits beyond 128 registers from a version of Triton on, by architecture and beginning of the name. The bicubic runs
# one warp per program, of which sm_86 holds 16 at most and sm_120 24, so the assembler takes more registers there.
MORE_REGISTERS = {
    (3, 6): {(86, "horizontal"): 168, (120, "horizontal"): 145, (120, "vertical"): 167},
    (3, 7): {(86, "horizontal"): 164},
}
SUMS = ("tail-sum", "link-gather", "link-spread")
"""How names begin of what has little to multiply in the tail and in its composition."""
UNTOUCHED = 8
"""Bytes of stack that the assembler reserves for sm_120 and that no instruction touches."""
VERSION = tuple(map(int, triton.__version__.split(".")[:2]))

# Few of some 2,600 compilations spill: an fp32 `lr`, which training does not have, beside x4 sums that are not rounded;
# and 8 or 16 bytes of the tail at x3 in fp32, and for 32 channels on sm_100.
SPILLS = {
    (3, 6): {(f"horizontal-mix-x4-float32-{out}-channels_last-none", 90) for out in ("float32", "bfloat16", "float16")},
    (3, 7): {
        *((f"tail-picture-{channels}-x3-float32", arch) for channels in (32, 64, 256) for arch in (86, 89)),
        *((f"tail-features-32-x3-{dtype}", 100) for dtype in ("bfloat16", "float16")),
        ("tail-picture-32-x2-float16", 100),
    },
}


def register_limit(name: str, arch: int, version: tuple[int, ...] = VERSION) -> int:
    """What a kernel may take in the newest version of Triton that is listed and not newer than that one.

    Those of the tail hold what tensor cores sum up: they may take all, but must not spill either.
    """
    if name.startswith("tail"):
        return 255
    listed = MORE_REGISTERS[max(each for each in MORE_REGISTERS if each <= version)]
    return next((limit for (of, start), limit in listed.items() if of == arch and name.startswith(start)), 128)


def faults(report: Report) -> list[str]:
    """What is wrong with a compiled kernel."""
    found = []
    if report.spill_bytes or report.stack_bytes > UNTOUCHED:
        found.append(f"spills: {report.spill_bytes} bytes, {report.stack_bytes} bytes of stack")
    limit = register_limit(report.name, report.arch)
    if report.registers > limit:
        found.append(f"{report.registers} registers, {limit} are the limit of Triton {triton.__version__}")
    if report.shared_bytes > (64 if report.name.startswith("tail") else 48) * 1024:
        found.append(f"{report.shared_bytes} bytes of shared memory")
    narrow_loads, narrow_stores = report.loads - report.loads_128, report.stores - report.stores_128
    if report.name.split("-")[0] in KINDS and max(narrow_loads, narrow_stores) > 1:
        # The scalars, alpha and the partial sum, are the one of each that may be narrow.
        found.append(f"{narrow_loads} loads and {narrow_stores} stores are not of 128 bits")
    if report.name.startswith(("norms", "adam-", "lamb-a", "lamb-moments")) and (narrow_loads > 6 or narrow_stores > 2):
        # Of the update there are six scalars at most, and two partial sums.
        found.append(f"{narrow_loads} loads and {narrow_stores} stores are not of 128 bits")
    if report.name.startswith(("tail", "link")) and not report.name.startswith(SUMS):
        if not report.tensor_products:
            found.append("tensor cores are not used")
        if not report.loads_128:
            found.append("no load is of 128 bits")
    return found


def cases() -> list:
    def marks(name: str, arch: int) -> list[pytest.MarkDecorator]:
        known = (name, arch) in SPILLS.get(VERSION, ())
        return [
            pytest.mark.slow if name in DEFAULTS and arch in (80, 90, 120) else pytest.mark.full,
            *([pytest.mark.xfail(strict=True, reason=f"spills with Triton {triton.__version__}")] if known else []),
        ]

    return [pytest.param(name, arch, marks=marks(name, arch)) for name in SPECIALISATIONS for arch in ARCHITECTURES]


def test_registers_are_limited_for_every_version() -> None:
    assert register_limit("vertical-x4", 120, (3, 6)) == 167
    assert register_limit("vertical-x4", 120, (3, 7)) == register_limit("vertical-x4", 120, (4, 0)) == 128
    assert register_limit("horizontal-x2", 86, (3, 12)) == 164
    assert register_limit("l1-float32", 86, (3, 6)) == 128
    assert register_limit("tail-sum", 86, (3, 6)) == 255


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
