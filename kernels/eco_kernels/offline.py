"""What the compiler makes of a kernel, without a GPU: registers, local memory, vector width, instructions.

Triton's wheel ships the assembler and the disassembler, so neither a driver nor the CUDA toolkit is needed. Kernels
that were imported under TRITON_INTERPRET=1 cannot be compiled.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from eco_kernels.downsample import kernel as downsample
from eco_kernels.gather import kernel as gather
from eco_kernels.loss import kernel as loss
from eco_kernels.mix import kernel as mix
from eco_kernels.tail import chain_kernel
from eco_kernels.tail import kernel as tail
from eco_kernels.triton_common import OPTIONS, Specialisation
from eco_kernels.update import kernel as update

ARCHITECTURES = (80, 86, 89, 90, 100, 120)

DEFAULTS = {
    "gather-uint8-i64",
    "gather-mix-float32-i64",
    "l1-float32-uint8-uint8",
    "l1-bfloat16-uint8-uint8",
    *(f"vertical-patch-x{scale}-uint8-channels_last-matlab" for scale in (2, 3, 4)),
    *(f"horizontal-mix-x{scale}-uint8-float32-channels_last-matlab" for scale in (2, 3, 4)),
    "norms",
    "judge",
    "lamb-moments",
    "lamb-ratios",
    *(f"{optimiser}-average-bfloat16-tensor" for optimiser in ("adam", "lamb")),
    *(f"tail-{of}-64-x{scale}-bfloat16" for of in ("picture", "features", "kernels") for scale in (2, 3, 4)),
    *(f"tail-sum-64-x{scale}" for scale in (2, 3, 4)),
    *(f"link-{of}-64-x{factor}" for of in ("products", "weights", "taps") for factor in (2, 3)),
    *(f"link-{of}-64-{link}" for of in ("gather", "spread") for link in chain_kernel.LINKS),
}
"""What a training step uses by default."""

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+ )?([A-Z][A-Z0-9_.]*)", re.MULTILINE)


class NamedDriver:
    """What Triton asks of a driver, for a device that only has a name.

    Its number is the architecture, since Triton remembers kernels by the number of their device.
    """

    def __init__(self, architecture: int) -> None:
        """Compute capability, 90 for 9.0."""
        self._architecture = architecture

    def get_current_target(self) -> GPUTarget:
        """What to compile for."""
        return GPUTarget("cuda", self._architecture, 32)

    def get_current_device(self) -> int:
        """Its number."""
        return self._architecture

    def get_current_stream(self, device: int) -> int:
        """The default one."""
        return 0

    def is_active(self) -> bool:
        """Whether it can be used."""
        return True


class Report(NamedTuple):
    """One kernel compiled for one architecture."""

    name: str
    arch: int
    registers: int  # per thread
    spill_bytes: int  # per thread, moved to or from local memory by instructions, each counted once
    stack_bytes: int  # per thread
    shared_bytes: int  # per program
    loads: int  # instructions per thread that read global memory
    loads_128: int  # of them, those of 128 bits
    stores: int
    stores_128: int
    instructions_per_output: float  # thread instructions, each counted once
    tensor_products: int  # instructions of tensor cores


def specialisations() -> Iterator[Specialisation]:
    """Every production specialisation of every kernel."""
    for operation in (gather, downsample, mix, loss, tail, chain_kernel, update):
        yield from operation.specialisations()


def inspect(kernel: Specialisation, arch: int) -> Report:
    """Compile a specialisation for compute capability `arch` (90 is 9.0) and count.

    Raises:
        subprocess.CalledProcessError: A tool of Triton's wheel failed.
    """
    names = list(kernel.signature)
    source = ASTSource(
        kernel.kernel,
        kernel.signature,
        {(names.index(name),): value for name, value in kernel.constexprs.items()},
        {(names.index(name),): [["tt.divisibility", value]] for name, value in kernel.divisibility.items()},
    )
    options = {"num_warps": kernel.num_warps, **OPTIONS}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = _run("cuobjdump", "-res-usage", cubin.name)
        instructions = _INSTRUCTION.findall(_run("nvdisasm", "-c", cubin.name))
    while instructions[-1] == "NOP":  # padding
        instructions.pop()
    used = {key: int(value) for key, value in re.findall(r"(REG|STACK):(\d+)", usage)}

    def count(pattern: str) -> int:
        return sum(re.match(pattern, instruction) is not None for instruction in instructions)

    return Report(
        kernel.name,
        arch,
        registers=used["REG"],
        spill_bytes=sum(_width(each) for each in instructions if re.match("LDL|STL", each)),
        stack_bytes=used["STACK"],
        shared_bytes=compiled.metadata.shared,
        loads=count(r"LDG(STS)?\b"),
        loads_128=count(r"LDG.*\.128"),
        stores=count("STG"),
        stores_128=count(r"STG.*\.128"),
        instructions_per_output=len(instructions) * 32 * kernel.num_warps / kernel.outputs,
        tensor_products=count("HMMA|HGMMA|UTC.*MMA"),
    )


def _width(instruction: str) -> int:
    """Bytes that a memory instruction moves per thread: `STL.64` moves 8."""
    bits = re.search(r"\.[US]?(8|16|64|128)\b", instruction)
    return int(bits[1]) // 8 if bits else 4


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([_TOOLS / tool, *arguments], check=True, capture_output=True, text=True).stdout
