"""The report of a proof, made from its journal alone: one page of Markdown, tables as CSV, plots."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eco_fast.files import write
from eco_fast.measured import QUICK, heading, marked, with_unit
from eco_fast.plots import can_draw, plot_figures
from eco_fast.proof.journal import Journal, Key, Line
from eco_fast.proof.table import TABLE
from eco_fast.units import duration

_NO_FIGURES = ("n", "t", "check", "device", "attempt")  # of a line: where and when, not what
_HINT = "choose another folder with --out"  # where a file cannot be written
_MEASURED_ON = ("hardware", "driver", "torch", "triton", "eco-fast", "commit", "date")  # in every row of a CSV file


def summary(journal: Journal) -> str:
    """How many checks ended in what way, a line."""
    statuses = [outcome.status for outcome in journal.outcomes().values()]
    return "checks: " + ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))


def has_gpu(journal: Journal) -> bool:
    """Whether any check has come to an end on a GPU."""
    return any(each.device == "cuda" and each.status in ("passed", "failed") for each in journal.outcomes().values())


def write_report(journal: Journal, out: Path) -> Path:
    """Write `report.md`, `checks.csv`, and for every check that measured something a CSV file and a plot.

    Raises:
        UserError: The folder cannot be written.
    """
    _write_csv(out / "checks.csv", [outcome.row() for outcome in journal.outcomes().values()])
    for key in journal.outcomes():
        if rows := _rows(journal, key):
            _write_csv(out / f"{_file(key)}.csv", rows)
            texts = [{name: str(value) for name, value in row.items()} for row in _fairest(rows)]
            if can_draw(texts):
                plot_figures(texts, out / f"{_file(key)}.png")
    write(out / "report.md", _page(journal, out).encode(), _HINT)
    return out / "report.md"


def _page(journal: Journal, out: Path) -> str:
    shows = {check.name: check.shows for check in TABLE}
    outcomes = journal.outcomes()
    lines = ["# Proof of eco-fast", "", f"{summary(journal)}. It took {duration(_seconds(journal))}.", ""]
    if not has_gpu(journal):
        lines += ["**No GPU took part: no check of a GPU ran, and no figure here is of one.** What a CPU measures are"]
        lines += ["small problems: they show that everything runs, and not how fast.", ""]
    lines += ["## Measured on", "", *_table([{"": k, "value": v} for k, v in _machine(journal).items()]), ""]
    rows = [{**each.row(), "shows": shows.get(each.name, "")} for each in outcomes.values()]
    lines += ["## Checks", "", *_table(rows), ""]
    for key in outcomes:
        if figures := journal.figures(key):
            lines += [f"## {key[0]} ({key[1]}): {outcomes[key].status}", ""]
            lines += [f"{QUICK}.", ""] if key[1] == "cpu" else []
            lines += _tables(figures)
            plot = out / f"{_file(key)}.png"
            lines += [f"![{plot.stem}]({plot.name})", ""] if plot.is_file() else []
    for line in journal.lines:
        for name in ("traceback", "log"):
            if line.get(name):
                head = f"### {line['check']} ({line['device']}), attempt {line['attempt']}: {name}"
                lines += [head, "", "```", line[name].rstrip(), "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def _fairest(rows: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """The rows of contestants that ran in turns; of those that ran alone where there was no time for turns."""
    return [row for row in rows if row["benchmark"] == "in turns"] or rows


def _tables(figures: Sequence[Line]) -> list[str]:
    """Figures that belong together in a table, with the columns that they fill; lone facts as a list."""
    lines = []
    groups: dict[str, list[Line]] = {}
    for figure in figures:
        if figure["case"] != "machine":  # stands above
            groups.setdefault(figure.get("benchmark", ""), []).append(figure)
    for name in sorted(groups, key=bool):  # what has no name can have no heading, so it comes first
        rows = [{k: v for k, v in line.items() if k not in (*_NO_FIGURES, "benchmark")} for line in groups[name]]
        columns = list(dict.fromkeys(column for row in rows for column in row))
        lines += [*([f"### {name}", ""] if name else [])]
        lines += [*_table([{column: row.get(column, "") for column in columns} for row in rows]), ""]
    return lines


def _rows(journal: Journal, key: Key) -> list[dict[str, Any]]:
    """The figures of a check as rows of the benchmarks are: what was measured, then what on."""
    machine = _machine(journal)
    measured_on = {name: machine[name] for name in _MEASURED_ON if name in machine}
    if "hardware" in measured_on:
        measured_on["hardware"] = marked(measured_on["hardware"], quick=key[1] == "cpu")
    figures = [{k: v for k, v in line.items() if k not in _NO_FIGURES} for line in journal.figures(key)]
    return [
        {"benchmark": key[0], "device": key[1], **row, **measured_on} for row in figures if row["case"] != "machine"
    ]


def _machine(journal: Journal) -> dict[str, Any]:
    """The machine that the proof was made on, as its first check described it."""
    lines = [line for device in ("cuda", "cpu") for line in journal.figures(("machine", device))]
    found = next((line for line in lines if line["case"] == "machine"), {"machine": "not described"})
    return {name: value for name, value in found.items() if name not in (*_NO_FIGURES, "case")}


def _seconds(journal: Journal) -> float:
    """The time that all calls took together: `t` starts at 0 in each."""
    ends = [a["t"] for a, b in zip(journal.lines, [*journal.lines[1:], {"t": 0.0}], strict=True) if b["t"] < a["t"]]
    return sum(ends)


def _file(key: Key) -> str:
    """The name of a check's files: those of the CPU say so."""
    return key[0] if key[1] == "cuda" else f"{key[0]}-cpu"


def _write_csv(file: Path, rows: Sequence[Mapping[str, object]]) -> None:
    text = io.StringIO()
    columns = list(dict.fromkeys(column for row in rows for column in row))
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write(file, text.getvalue().encode(), _HINT)


def _table(rows: Sequence[Mapping[str, object]]) -> list[str]:
    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    keys = list(rows[0])
    cells = [[_text(key, row[key]) for key in keys] for row in rows]
    heads = [heading(key) if with_unit(key, 0) else key for key in keys]
    return [line(heads), "|" + "---|" * len(keys), *(line(row) for row in cells)]


def _text(column: str, value: object) -> object:
    """A figure with its unit where its column names one."""
    return (with_unit(column, value) or value) if isinstance(value, int | float) else value
