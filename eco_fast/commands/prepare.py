"""`eco-fast prepare` and `eco-fast data`: making, checking and looking at prepared stores."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from eco_fast.commands.contact_sheet import save_contact_sheet
from eco_fast.console import plain_table
from eco_fast.data.make_store import prepare
from eco_fast.data.store import PreparedStore, stored_teachers
from eco_fast.display import Display
from eco_fast.errors import UserError
from eco_fast.models import placed
from eco_fast.models.weights import load_network
from eco_fast.train.machine import usable_device
from eco_fast.train.teacher import freeze, settled_precision, store_teacher
from eco_fast.units import digits, size


def prepare_store(
    folders: Sequence[Path],
    scales: Sequence[int],
    out: Path,
    *,
    lr_dir: Path | None,
    teacher_file: Path | None,
    teacher_name: str | None,
    precision: str,
    allow_16bit: bool,
    device: str = "auto",
    raw: bool = False,
) -> None:
    """Make or update a store and say what is in it.

    Args:
        folders: As in `prepare`.
        scales: As in `prepare`.
        out: The store.
        lr_dir: As in `prepare`.
        teacher_file: Run, checkpoint or weights file of a teacher.
        teacher_name: Network of a bare weights file.
        precision: Of the teacher: auto, fp32 or bf16.
        allow_16bit: Round images of 16 bit to 8.
        device: Of the teacher, as `usable_device` takes it.
        raw: Take the weights of a teacher's run themselves instead of their average.

    Raises:
        UserError: As `prepare`; or the teacher is for none of the scales, or there is none for what is said of one.
    """
    display = Display()
    teacher = None
    if teacher_file is None:
        _refuse_without_teacher(network=teacher_name, precision=precision != "auto", device=device != "auto", raw=raw)
    else:
        scale, network = _teacher(teacher_file, teacher_name, scales, raw)
        device = usable_device(device)
        precision = settled_precision(precision, network, torch.device(device).type, stored_teachers(out, scale))
        display.line(f"centroids at x{scale} in {precision}, rounded to 8 bit")
        teacher = store_teacher(placed(network, device), scale, precision, device)
    prepare(folders, scales, out, lr_dir=lr_dir, teacher=teacher, allow_16bit=allow_16bit, progress=display.rate)
    show_store(out)


def verify_store(path: Path) -> None:
    """Read every file of a store and compare it with the index.

    Raises:
        UserError: Something is wrong.
    """
    display = Display()
    with display.count("images verified") as count:
        store = PreparedStore.open(path, recheck=True, progress=count)
    display.line(f"{path}: {len(store.entries)} images, every file is right")


def show_store(path: Path, sheet: Path | None = None) -> None:
    """Print what is in a store, and draw its contact sheet.

    Raises:
        UserError: The store is damaged or out of date.
    """
    display = Display()
    with display.count("images checked") as count:
        store = PreparedStore.open(path, progress=count)
    display.line(f"{path}: {len(store.entries)} images")
    table = plain_table("array", "megapixels", "size", figures=("megapixels", "size"))
    for kind in sorted(store.kinds):
        pixels = sum(entry.shape(kind)[0] * entry.shape(kind)[1] for entry in store.entries)
        table.add_row(kind, digits(pixels / 1e6), size(3 * pixels))
    display.console.print(table)
    heights, widths = [e.height for e in store.entries], [e.width for e in store.entries]
    display.line(f"smallest side {min(min(heights), min(widths))}, largest {max(max(heights), max(widths))} pixels")
    for line in store.notes.lines():
        display.line(line)
    if sheet is not None:
        shown = save_contact_sheet(store, sheet)
        display.line(f"contact sheet of {shown} images: {sheet}")


def _refuse_without_teacher(**given: object) -> None:
    if options := [f"--{name}" for name, value in given.items() if value]:
        raise UserError(f"{' and '.join(options)} would be the teacher's; name one with --teacher, or leave it out")


def _teacher(file: Path, name: str | None, scales: Sequence[int], raw: bool) -> tuple[int, nn.Module]:
    """The teacher, and the one scale of those asked for that its file is for."""
    fitting, reasons = [], []
    for scale in scales:
        try:
            fitting.append((scale, load_network(file, name=name, scale=scale, raw=raw)))
        except UserError as error:
            reasons.append(str(error))
    if not fitting:
        raise UserError(reasons[-1])
    scale, network = fitting[0]
    return scale, freeze(network)
