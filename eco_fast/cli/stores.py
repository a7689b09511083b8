"""Commands about prepared stores of training images: `prepare` and `data`."""

from pathlib import Path
from typing import Annotated

import typer

from eco_fast.cli.options import Device, Network, Raw, choice, command, group, one_of, path, paths
from eco_fast.errors import UserError

commands = group()


@command(
    commands,
    "prepare",
    "Decode training images into a store.",
    "eco-fast prepare DIV2K --scale 2,3,4 --out store",
    "eco-fast prepare DIV2K --scale 2 --teacher runs/teacher --out store",
    "eco-fast prepare --verify store",
)
def prepare(
    folders: Annotated[list[Path] | None, paths("DIR", "Folders of HR images, or text files of paths.")] = None,
    out: Annotated[Path | None, path("--out", "DIR", "Folder of the store; one that is there is updated.")] = None,
    scales: Annotated[
        str, typer.Option("--scale", metavar="2,3,4", help="Scales of the LR images, one or several.")
    ] = "2",
    lr: Annotated[Path | None, path("--train-lr", "DIR", "Folder of LR images; by default the bicubic of HR.")] = None,
    teacher: Annotated[
        Path | None,
        path("--teacher", "FILE", "Run, checkpoint or weights file of a teacher whose images are stored too."),
    ] = None,
    network: Network = None,
    precision: Annotated[
        str,
        choice("--precision", "NAME", one_of("auto", "fp32", "bf16"), "Arithmetic of the teacher: auto, fp32 or bf16."),
    ] = "auto",
    device: Device = "auto",
    raw: Raw = False,
    allow_16bit: Annotated[
        bool, typer.Option("--allow-16bit", help="Round images of 16 bit to 8 instead of refusing them.")
    ] = False,
    verify: Annotated[Path | None, path("--verify", "STORE", "Only read everything in a store and check it.")] = None,
) -> None:
    """Decode training images once into a store, with LR and a teacher's images; finish or update one."""
    from eco_fast.commands.prepare import prepare_store as run
    from eco_fast.commands.prepare import verify_store

    if verify is not None:
        verify_store(verify)
        return
    if not folders or out is None:
        raise UserError("name folders of images and the store: eco-fast prepare DIR --scale 2 --out STORE")
    run(
        folders,
        _scales(scales),
        out,
        lr_dir=lr,
        teacher_file=teacher,
        teacher_name=network,
        precision=precision,
        allow_16bit=allow_16bit,
        device=device,
        raw=raw,
    )


def _scales(text: str) -> list[int]:
    parts = text.replace(",", " ").split()
    if not parts or not all(part in ("2", "3", "4") for part in parts):
        raise UserError(f"--scale {text} is not made of 2, 3 and 4; write --scale 2,3,4")
    return sorted({int(part) for part in parts})


@command(commands, "data", "Show what is in a store.", "eco-fast data store --sheet sheet.png")
def data(
    store: Annotated[Path, paths("STORE", "Folder of a prepared store.")],
    sheet: Annotated[Path | None, path("--sheet", "FILE", "Draw a contact sheet of it as PNG.")] = None,
) -> None:
    """Show how many images of what sizes are in a prepared store."""
    from eco_fast.commands.prepare import show_store as run

    run(store, sheet)
