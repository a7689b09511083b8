"""The report of the proof: one page of Markdown beside the CSV files and plots it is made from."""

import csv
import io
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch

from eco_fast.doctor import diagnose
from eco_fast.errors import UserError
from eco_fast.files import write_atomically
from eco_fast.proof.outcome import Outcome

_SHOWN = {  # benchmark -> columns of its rows that the page shows
    "waterfall": ("case", "ms_per_step", "ratio", "memory_mb", "final_loss", "steps"),
    "step": ("case", "ms_per_step", "ratio", "of", "goal"),
    "data": ("case", "patches_per_second", "ratio", "wait_ms", "percent"),
    "prepare": ("case", "ms_per_image", "of_decoding"),
    "evaluate": ("case", "seconds", "ratio", "overhead_percent"),
}
_KERNELS = (
    "device",
    "operation",
    "case",
    "contestant",
    "cache",
    "p50_us",
    "gb_per_s",
    "percent_of_copy",
    "launches",
    "ratio",
)


class Proof(NamedTuple):
    """What came out."""

    outcomes: Sequence[Outcome]
    suites: Mapping[str, str]  # benchmark suite -> "ran", "skipped: why", "failed: why"
    seconds: float
    machine: Mapping[str, str] = MappingProxyType({})

    @property
    def failed(self) -> list[str]:
        """Names of the checks and suites that failed."""
        checks = [f"{each.name} ({each.device})" for each in self.outcomes if each.status == "failed"]
        return checks + [f"bench {suite}" for suite, state in self.suites.items() if state.startswith("failed")]

    @property
    def has_gpu(self) -> bool:
        """Whether any check ran on a GPU."""
        return any(each.device == "cuda" and each.status != "not run" for each in self.outcomes)

    @property
    def summary(self) -> str:
        """How many checks of each status, a line."""
        counts = {status: sum(each.status == status for each in self.outcomes) for status in _STATUSES}
        checks = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        ran = sum(state == "ran" for state in self.suites.values())
        return f"checks: {checks}; benchmarks: {ran} of {len(self.suites)} ran"


_STATUSES = ("passed", "failed", "not run")


def write_report(proof: Proof, out: Path) -> Path:
    """Write `checks.csv` and `report.md` into `out`, which holds the rows and plots of the benchmarks that ran.

    Raises:
        UserError: The folder cannot be written.
    """
    text = io.StringIO()
    rows = [each.row() for each in proof.outcomes]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    try:
        write_atomically(out / "checks.csv", text.getvalue().encode())
        write_atomically(out / "report.md", _page(proof, out).encode())
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}; choose another folder with --out") from error
    return out / "report.md"


def _page(proof: Proof, out: Path) -> str:
    lines = ["# Proof of eco-fast", "", f"{proof.summary}. {proof.seconds / 60:.1f} minutes.", ""]
    if not proof.has_gpu:
        lines += ["**No GPU took part: no check of a GPU ran, and no figure here is of one.**", ""]
    lines += [
        "## Measured on",
        "",
        *_table([{"": key, "value": value} for key, value in (proof.machine or describe_machine()).items()]),
        "",
    ]
    lines += ["## Checks", "", *_table([_check_row(each) for each in proof.outcomes]), ""]
    lines += ["## Benchmarks", "", *_table([{"suite": k, "state": v} for k, v in proof.suites.items()]), ""]
    for suite, state in proof.suites.items():
        if state == "ran":
            lines += _figures(suite, out)
    return "\n".join(lines).rstrip() + "\n"


def _check_row(outcome: Outcome) -> dict[str, object]:
    row = outcome.row()
    return {key: row[key] for key in ("check", "device", "status", "compared", "seconds", "detail")}


def _figures(suite: str, out: Path) -> list[str]:
    """The rows of a suite, and its plots."""
    with (out / f"{suite}.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    lines: list[str] = []
    names = dict.fromkeys(row.get("benchmark", suite) for row in rows)
    for name in names:
        columns = _SHOWN.get(name, _KERNELS)
        chosen = [row for row in rows if row.get("benchmark", suite) == name]
        filled = [column for column in columns if any(row.get(column) for row in chosen)]
        lines += [f"### {name}", "", *_table([{key: row[key] for key in filled} for row in chosen]), ""]
    return lines + [f"![{file.stem}]({file.name})\n" for file in sorted(out.glob(f"{suite}*.png"))]


def _table(rows: Sequence[Mapping[str, object]]) -> list[str]:
    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    keys = list(rows[0])
    return [line(keys), "|" + "---|" * len(keys), *(line([row[key] for key in keys]) for row in rows)]


def describe_machine() -> dict[str, str]:
    """Device, driver, versions, date."""
    found = diagnose()
    driver = {"NVIDIA driver": _driver(), "CUDA of PyTorch": str(torch.version.cuda or "none")}
    system = {"system": platform.platform(), "CPU cores": str(os.cpu_count()), "date": time.strftime("%Y-%m-%d")}
    return {**found["device"], **driver, **found["versions"], **system, **found["uses"]}


def _driver() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "none"
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    result = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    lines = result.stdout.split("\n")
    return lines[0].strip() if result.returncode == 0 and lines[0].strip() else "none that answers"
