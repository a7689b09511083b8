"""Rows of benchmarks as tables that fit the terminal: what was timed, its figure, what that is compared with.

What all rows of a table share stands in a line above it; every other column is in the CSV file.
"""

from itertools import groupby

from rich.console import Console

from eco_fast.console import plain_table
from eco_fast.measured import Row, Rows, comparison, headline, measured_on, with_unit
from eco_fast.units import digits

_SAME = ("hardware", "threads", "torch")  # figures of different ones stand in tables of their own


def print_figures(rows: Rows, console: Console) -> None:
    """A table for each benchmark and what it was measured on."""
    for (name, *_), found in groupby(rows, lambda row: (row["benchmark"], *(row[key] for key in _SAME))):
        group = list(found)
        table = plain_table("case", "measured", "compared", figures=["measured"])
        for row in group:
            table.add_row(row["case"], headline(row) or "-", comparison(row))
        console.print(f"{name}: {measured_on(group)}")
        console.print(table)


def print_kernels(rows: Rows, console: Console) -> None:
    """A table for each operation on each hardware: medians, and how many times the product's they are."""
    several_caches = len({row["cache"] for row in rows}) > 1
    for hardware, on_it in groupby(sorted(rows, key=_hardware), _hardware):
        console.print(hardware)
        for operation, found in groupby(on_it, lambda row: row["operation"]):
            table = plain_table("case", "contestant", "median", "x product", figures=["median", "x product"])
            for case, contestants in groupby(found, lambda row: row["case"]):
                for number, row in enumerate(contestants):
                    name = f"{row['contestant']}, {row['cache']}" if several_caches else row["contestant"]
                    figures = with_unit("p50_us", float(row["p50_us"])), digits(float(row["ratio"]))
                    table.add_row("" if number else case, name, *figures)
                table.add_section()
            console.print(operation)
            console.print(table)


def _hardware(row: Row) -> str:
    return measured_on([row])
