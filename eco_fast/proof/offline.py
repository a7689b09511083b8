"""What can be shown of the kernels without a GPU."""

import csv
import json
import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec

from eco_fast.commands.bench import BENCHMARKS
from eco_fast.proof import kernels
from eco_fast.proof.outcome import Evidence, NotRun
from eco_fast.proof.stage import Stage


def listed(stage: Stage) -> Evidence:
    """Whether the comparisons call every specialisation that there is."""
    _need_triton()
    from eco_kernels.offline import specialisations

    return kernels.coverage(frozenset(kernel.name for kernel in specialisations()))


def interpreted(stage: Stage) -> Evidence:
    """The kernels of training by default, in a process of its own: Triton's interpreter is chosen at import."""
    _need_triton()
    from eco_kernels.offline import DEFAULTS

    names = sorted(name for name in DEFAULTS if "bfloat16" not in name)  # the interpreter has a bf16 of its own
    result = subprocess.run(
        [sys.executable, "-m", "eco_fast.proof.kernels", *names],
        env={**os.environ, "TRITON_INTERPRET": "1", "ECO_KERNELS": "triton", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        return Evidence(0, (f"the interpreter ended with {result.returncode}: {result.stderr.strip()[-300:]}",))
    found = json.loads(result.stdout)
    return Evidence(found["compared"], tuple(found["faults"]), found["detail"])


def compiled(stage: Stage) -> Evidence:
    """What the assembler makes of the kernels of training by default, on all architectures."""
    _need_triton()
    if not BENCHMARKS.is_dir():
        raise NotRun(f"{BENCHMARKS} is missing: the report needs the source tree")
    rows = list(import_module("compile_report").rows(everything=False))
    with (stage.out / "compile_report.csv").open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    faults = tuple(
        f"{row['specialisation']} on {row['arch']} spills {row['spill_bytes']} bytes"
        for row in rows
        if row["spill_bytes"]
    )
    most = max(int(str(row["registers"])) for row in rows)
    return Evidence(len(rows), faults, f"{len(rows)} compilations, at most {most} registers")


def _need_triton() -> None:
    if find_spec("triton") is None:
        raise NotRun("Triton is not installed: pip install triton")
