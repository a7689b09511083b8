"""What rows of benchmarks say to people: figures with their units, what they are compared with and were measured on."""

from collections.abc import Mapping, Sequence

from eco_fast.units import digits, duration, size

Row = Mapping[str, str]
Rows = Sequence[Row]

QUICK = "QUICK: TINY PROBLEMS, NOT MEASUREMENTS"
"""Stands before the hardware in rows of tiny problems, and so on every table and plot that is made of them."""

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "seconds": 1.0}  # parts of a column's name
_RATES = {"gb_per_s": "GB/s", "tflops": "TFLOP/s"}
_MEBIBYTE = 1 << 20  # what rows call MB, as PyTorch and Linux do
_MEASURED_ON = {
    "hardware": "{}",
    "threads": "{} threads",
    "precision": "{}",
    "torch": "PyTorch {}",
    "triton": "Triton {}",
    "nvidia-dali-cuda130": "DALI {}",
    "pillow": "Pillow {}",
    "numpy": "NumPy {}",
    "scikit-image": "scikit-image {}",
}


def marked(hardware: str, *, quick: bool) -> str:
    """The hardware of a row; with `quick` it says that nothing was measured."""
    return f"{QUICK}. {hardware}" if quick else hardware


def with_unit(column: str, value: float) -> str | None:
    """A figure as people read it, in the unit that its column's name tells; None where that tells none.

    Args:
        column: As rows call it: `ms_per_step`, `peak_mb`, `percent`, `patches_per_second`.
        value: In that unit.
    """
    if column in _RATES:
        return f"{digits(value)} {_RATES[column]}"
    if column.endswith("_per_second"):
        return f"{digits(value)} {column.removesuffix('_per_second').replace('_', ' ')}/s"
    parts = column.split("_")
    for part in parts:
        if part in _SECONDS:
            return duration(value * _SECONDS[part])
    if "mb" in parts:
        return size(value * _MEBIBYTE)
    return f"{digits(value)} %" if "percent" in parts else None


def heading(column: str) -> str:
    """A column's name for figures with units, without its own: `ms_per_step` is the time per step."""
    if column in _RATES or column.endswith("_per_second"):
        return "speed"
    left = [part for part in column.split("_") if part not in (*_SECONDS, "mb", "percent")]
    return " ".join(["time", *left] if left[:1] in ([], ["per"]) else left)


def headline(row: Row) -> str:
    """The first figure of a row with its unit: "48.6 ms per step", "3,334 patches/s"; empty where it has none."""
    for column, value in row.items():
        if value and column not in _MEASURED_ON and (text := _with_unit(column, value)):
            _, per, unit = column.partition("_per_")
            return f"{text} per {unit}" if per and text[-2:] != "/s" else text
    return ""


def comparison(row: Row) -> str:
    """What a row compares its figure with: "1.45 x speed of plain PyTorch"; empty where it has none."""
    if row.get("ratio"):
        ratio, of = f"{float(row['ratio']):.3g}", row.get("of")
        return f"ratio {ratio}" if not of else f"{ratio} x {of}" if " of " in of else f"{ratio} ({of})"
    if row.get("of_decoding"):
        return f"{float(row['of_decoding']):.3g} x speed of plain decoding"
    if row.get("overhead_percent"):
        return f"files and metrics add {row['overhead_percent']} % to inference"
    return f"{row['percent']} % of the step" if row.get("percent") else ""


def measured_on(rows: Rows) -> str:
    """The hardware, threads, precision and versions of rows, each once."""
    known = []
    for column, text in _MEASURED_ON.items():
        found = dict.fromkeys(_value(row, column) for row in rows)
        if values := " and ".join(filter(None, found)):
            known.append(text.format(values))
    return ", ".join(known)


def _value(row: Row, column: str) -> str:
    """The rows of operations call their hardware a device."""
    return row.get(column) or (row.get("device", "") if column == "hardware" else "")


def _with_unit(column: str, value: str) -> str | None:
    try:
        return with_unit(column, float(value))
    except ValueError:
        return None
