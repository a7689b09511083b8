"""The proof: all checks one after the other, the benchmarks, the report."""

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from eco_fast.errors import UserError
from eco_fast.proof.checks import Check, benchmarks, gpu_checks, offline_checks, why_no_gpu
from eco_fast.proof.outcome import Outcome, perform
from eco_fast.proof.report import Proof, describe_machine, write_report

_SWITCHES = ("ECO_KERNELS", "TRITON_INTERPRET", "TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE")


def gpu_proof(out: Path) -> Proof:
    """Check everything, measure everything, and write `report.md`, `checks.csv`, the figures and plots into `out`.

    Without a GPU its checks and the benchmarks are reported as not run; what can be shown without one is.

    Raises:
        UserError: A check or a benchmark failed, or the folder cannot be written.
    """
    console = Console(highlight=False, soft_wrap=True)
    if found := [name for name in _SWITCHES if os.environ.get(name)]:
        raise UserError(f"something else than usual would be checked; unset {', '.join(found)}")
    machine = describe_machine()  # now: after a fault of the device nothing can be asked of it
    started = time.monotonic()
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "report.md").unlink(missing_ok=True)  # an older one must not pass as this one's
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}; choose another folder with --out") from error
    with tempfile.TemporaryDirectory() as scratch:
        checks = [*gpu_checks(Path(scratch)), *offline_checks(out, Path(scratch))]
        outcomes = _perform_all(checks, console)
    console.print("benchmarks")
    suites = benchmarks(out)
    proof = Proof(outcomes, suites, time.monotonic() - started, machine)
    report = write_report(proof, out)
    _conclude(proof, report, console)
    return proof


def _perform_all(checks: Sequence[Check], console: Console) -> list[Outcome]:
    outcomes = []
    for number, check in enumerate(checks, start=1):
        head = f"[{number}/{len(checks)}] {check.device:4}  {check.name}"
        with console.status(head, spinner="line"):
            outcome = perform(*check)
        console.print(f"{head}: {outcome.status} ({outcome.seconds:.0f} s) {outcome.detail}", markup=False)
        outcomes.append(outcome)
    return outcomes


def _conclude(proof: Proof, report: Path, console: Console) -> None:
    console.print(f"\n{proof.summary}; report: {report}", markup=False)
    if not proof.has_gpu:
        console.print(f"No GPU ({why_no_gpu()}): nothing about a GPU is shown by this.", markup=False)
    if proof.failed:
        raise UserError(f"failed: {', '.join(proof.failed)}; see {report}")
