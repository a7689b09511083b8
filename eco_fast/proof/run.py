"""The proof as a command: which checks, in what order, for how long; then the report."""

import os
import shutil
import tarfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

import eco_fast
from eco_fast.errors import Stopped, UserError
from eco_fast.files import moved_when_complete, writing
from eco_fast.proof.journal import Journal, open_journal, read_journal
from eco_fast.proof.outcome import Outcome
from eco_fast.proof.report import has_gpu, summary, write_report
from eco_fast.proof.supervisor import COMMAND, Supervisor
from eco_fast.proof.table import SCRATCH, Check, choose
from eco_fast.stop import stop_signal

_SWITCHES = ("ECO_KERNELS", "TRITON_INTERPRET", "TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE")
REPORT_SECONDS = 8.0  # kept back for the report and its plots


def gpu_proof(
    out: Path,
    *,
    minutes: float | None = None,
    only: str = "",
    resume: bool = False,
    cpu: bool = False,
    pack: Path | None = None,
    kernel_cache: Path | None = None,
    command: Sequence[str] = COMMAND,
) -> list[Outcome]:
    """Check and measure what there is time for, and write `report.md` with tables and plots into `out`.

    Every figure is in `results.jsonl` at once. Without a GPU, and with `cpu`, what can be shown on a CPU is.

    Args:
        out: A new folder, or that of a proof to go on with.
        minutes: After these all is over, the report included; no limit if None.
        only: Names of checks, with commas; those are made even if they were made before. All if empty.
        resume: Go on with the proof in `out`: what has ended there is not made again.
        cpu: Make the checks of the CPU too where there is a GPU.
        pack: Takes everything as one archive.
        kernel_cache: Archive of `--warm-kernels`, which is unpacked into Triton's cache first.
        command: Starts a worker.

    Raises:
        UserError: A check failed, there is nothing to resume or something to overwrite, a file cannot be written.
        Stopped: By Ctrl-C or SIGTERM; what was found is in the report.
    """
    checks = choose(only)
    if found := [name for name in _SWITCHES if os.environ.get(name)]:
        raise UserError(f"something else than usual would be checked; unset {', '.join(found)}")
    if kernel_cache is not None:
        _unpack(kernel_cache)
    console = Console(highlight=False, soft_wrap=True)
    seconds = float("inf") if minutes is None else 60 * minutes - REPORT_SECONDS
    with open_journal(out, resume=resume) as journal, stop_signal() as stop:
        shutil.rmtree(out / SCRATCH, ignore_errors=True)
        _begin(journal, minutes, only)
        supervisor = Supervisor(journal, out, seconds, lambda: stop.asked, console, command)
        try:
            with writing(out, "go on elsewhere, or with --resume"):
                _make_all(supervisor, checks, journal, cpu=cpu, again=bool(only))
        finally:
            supervisor.close()
            shutil.rmtree(out / SCRATCH, ignore_errors=True)
        report_proof(out, pack=pack)
        if stop.asked:
            raise Stopped(f"stopped; {out} holds what was found; go on with --resume")
    return list(journal.outcomes().values())


def report_proof(out: Path, *, pack: Path | None = None) -> None:
    """Write the report of what a folder holds, also of a proof that was cut off; say what did not pass.

    Raises:
        UserError: There is no proof, a check did not pass, or a file cannot be written.
    """
    journal = read_journal(out)
    report = write_report(journal, out)
    print(f"\n{summary(journal)}; report: {report}")
    if pack is not None:
        _pack(out, pack)
        print(f"everything in one file: {pack}")
    if not has_gpu(journal):
        print("No check ran on a GPU: nothing about a GPU is shown by this.")
    if bad := [f"{each.name} ({each.device}, {each.status})" for each in journal.outcomes().values() if each.is_bad]:
        raise UserError(f"not passed: {', '.join(bad)}; see {report}")


def _begin(journal: Journal, minutes: float | None, only: str) -> None:
    """Mark where a call begins; what the call before it could not finish was interrupted."""
    for line in journal.under_way():
        head = {name: line[name] for name in ("check", "device", "attempt")}
        journal.add(t=line["t"], **head, end="interrupted", compared=0, faults=[], detail="the proof was killed")
    date = time.strftime("%Y-%m-%d %H:%M:%S")
    journal.add(t=0.0, proof=eco_fast.__version__, date=date, minutes=minutes, only=only)


def _make_all(supervisor: Supervisor, checks: Sequence[Check], journal: Journal, *, cpu: bool, again: bool) -> None:
    """Make the checks of the GPU, then those of the CPU where they are wanted or there is no GPU."""
    gpu, why = supervisor.gpu()
    if again and not any(line.get("case") == "machine" for line in journal.lines):
        checks = (*choose("machine"), *(check for check in checks if check.name != "machine"))  # what figures are of
    devices = ("cuda", "cpu") if cpu or gpu is None else ("cuda",)
    order = [(check, device) for device in devices for check in checks if device in check.devices]
    settled = set() if again else journal.settled(has_gpu=gpu is not None)
    for number, (check, device) in enumerate(order, start=1):
        place = f"[{number}/{len(order)}]"
        if (check.name, device) in settled:
            continue
        if device == "cuda" and gpu is None:
            supervisor.leave(check, device, why, place)
        else:
            supervisor.make(check, device, place)


def _unpack(archive: Path) -> None:
    from eco_fast.proof.warm_kernels import unpack  # imports PyTorch, which this process otherwise does without

    if find_spec("triton") is None:
        raise UserError("Triton is not installed: pip install triton")
    from triton import knobs

    made = unpack(archive, Path(knobs.cache.dir))
    print(f"{made.kernels} kernels of {archive} are in {knobs.cache.dir}")


def _pack(out: Path, file: Path) -> None:
    """Write everything in a folder as one archive."""
    temporary = file.with_name(f".{file.name}.tmp")
    with (
        writing(file, "name another file with --pack"),
        moved_when_complete(temporary, file),
        tarfile.open(temporary, "w:xz") as archive,
    ):
        archive.add(out, out.name, filter=lambda member: None if temporary.name in member.name else member)
