"""What the Triton kernels share: the exact 8-bit unit, launch options, descriptions for the offline compiler."""

# mypy: disable-error-code="no-untyped-def"
# The arguments of a kernel are the compiler's, which takes annotations for types of its own.

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

OPTIONS = {"enable_fp_fusion": False}
"""Rounding is part of the contracts, so no product and sum may be fused unless `tl.fma` says so."""

POINTERS = {torch.uint8: "*u8", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}

BATCH, HR_PATCH, RGB = 16, 192, 3
"""The batch that the byte counts of the specialisations are for: HR patches of 192 pixels, RGB."""

PARAMETERS = 1 << 20
"""The network that those of an update's kernels are for."""

# 1/255 in two parts. A product of the first, of 16 bits, with an 8-bit value is exact: the sum is q / 255 rounded once.
_UNIT_HIGH = tl.constexpr(32897 / 2.0**23)
_UNIT_LOW = tl.constexpr(1 / 255 - 32897 / 2.0**23)


@triton.jit
def unit(whole):
    """`whole / 255` rounded once, for whole fp32 numbers 0 .. 255."""
    return tl.fma(whole, _UNIT_HIGH, whole * _UNIT_LOW)


class Specialisation(NamedTuple):
    """What the compiler needs to compile one kernel without a device, as a launch on usual sizes would have it."""

    operation: str
    """The public function that launches it."""
    name: str
    kernel: Any
    signature: dict[str, str]
    """Type of every argument in order, "constexpr" for those in `constexprs`."""
    constexprs: dict[str, Any]
    divisibility: dict[str, int]
    """Arguments known to be multiples of 16: aligned pointers, and what the launcher makes so."""
    num_warps: int
    outputs: float
    """Values of the operation's result that one program accounts for."""
    bytes: int
    """What one launch reads and writes for `BATCH` patches, or for `PARAMETERS`: each input once, each output once."""


def specialisation(
    operation: str,
    name: str,
    kernel: Any,
    types: dict[str, str],
    constexprs: dict[str, Any],
    *,
    num_warps: int,
    outputs: float,
    bytes: int,
    multiples: tuple[str, ...] = (),
) -> Specialisation:
    """Fill in what follows from the kernel's arguments: those not named are int32, pointers are aligned.

    But for those whose alignment makes no other kernel.

    Args:
        operation, name, kernel, constexprs, num_warps, outputs, bytes: As in `Specialisation`.
        types: Triton's type of each argument that is neither int32 nor a constexpr.
        multiples: int32 arguments that are multiples of 16.
    """
    signature = {
        argument: "constexpr" if argument in constexprs else types.get(argument, "i32") for argument in kernel.arg_names
    }
    loose = kernel.do_not_specialize_on_alignment
    aligned = {
        name: 16
        for name, kind in signature.items()
        if (kind.startswith("*") and name not in loose) or name in multiples
    }
    return Specialisation(operation, name, kernel, signature, constexprs, aligned, num_warps, outputs, int(bytes))


def short_name(dtype: torch.dtype | None) -> str:
    """ "bfloat16" for `torch.bfloat16`, "none" for None."""
    return str(dtype).removeprefix("torch.").lower()


def size_of(dtype: torch.dtype | None) -> int:
    """Bytes of an element, 0 for None."""
    return 0 if dtype is None else dtype.itemsize


def on_device(device: torch.device, *indices: Tensor) -> list[Tensor]:
    """Indices as the kernels read them: dense, those on the CPU copied to the device."""
    return [index.to(device, non_blocking=True).contiguous() for index in indices]


def launches_on(device: torch.device) -> AbstractContextManager[object]:
    """Make `device` the current one: Triton launches there, wherever its arguments lie."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
