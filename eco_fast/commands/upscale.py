"""`eco-fast upscale`: images of any size and format through a network, to PNG files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import nn

from eco_fast.data.decode import read_image
from eco_fast.data.find import find_images
from eco_fast.data.notes import Notes
from eco_fast.display import Display
from eco_fast.errors import UserError
from eco_fast.evaluate.bicubic import bicubic_upsample
from eco_fast.evaluate.inference import PRECISIONS, super_resolve
from eco_fast.evaluate.pictures import png, save_comparison
from eco_fast.files import write, writing
from eco_fast.models import placed
from eco_fast.models.weights import load_network
from eco_fast.train.machine import refuse_unusable_kernels

_ALPHA_MODES = {"RGBA", "LA", "PA"}


def upscale(
    images: Sequence[Path],
    weights: Path,
    out: Path,
    *,
    network_name: str | None = None,
    scale: int | None = None,
    precision: str = "fp32",
    tile: int | None = None,
    ensemble: bool = False,
    compare: bool = False,
    force: bool = False,
) -> list[Path]:
    """Write `OUT/NAME_xS.png` for every image; transparency is kept, enlarged by bicubic.

    Args:
        images: Files, folders, or text files of paths.
        weights: Run, checkpoint or weights file.
        out: Folder, made if it is not there.
        network_name: Network of a bare weights file.
        scale: Scale of a bare weights file.
        precision: "fp32", "bf16" or "fp16".
        tile: Side of the tiles in LR pixels; by default an image goes through whole where memory allows it.
        ensemble: The mean over eight orientations, eight times as slow.
        compare: Write `NAME_xS_compare.png` too: bicubic and the network side by side.
        force: Replace files.

    Raises:
        UserError: Bad input, or a file that is there already or cannot be written.
    """
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}; take one of {', '.join(PRECISIONS)}")
    if tile is not None and tile < 1:
        raise UserError(f"--tile {tile} is no size; give LR pixels, or leave it out")
    display, notes = Display(), Notes()
    network = load_network(weights, name=network_name, scale=scale)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    refuse_unusable_kernels(device)
    network = placed(network, device)
    factor = int(network.scale)  # type: ignore[arg-type]
    targets = _targets([file for path in images for file in find_images(path)], out, factor, force)
    for number, (file, target) in enumerate(targets.items(), start=1):
        lr = read_image(file, notes)
        with display.count(f"{file.name} ({number}/{len(targets)})") as progress:
            sr = super_resolve(network, lr, precision=precision, tile=tile, ensemble=ensemble, progress=progress)
        alpha = _alpha(file)
        pixels = sr if alpha is None else np.dstack([sr, bicubic_upsample(alpha, factor)])
        write(target, png(Image.fromarray(pixels)), "make room or choose another --out")
        if compare:
            panels = [("bicubic", bicubic_upsample(lr, factor)), (_label(network), sr)]
            save_comparison(target.with_name(f"{target.stem}_compare.png"), panels, figures=False)
    for line in notes.lines():
        if "alpha channel" not in line:
            display.line(line)
    display.line(f"{len(targets)} images x{factor} in {out}")
    return list(targets.values())


def _targets(files: Sequence[Path], out: Path, scale: int, force: bool) -> dict[Path, Path]:
    """Where every image goes.

    Raises:
        UserError: Two images have one name, or a file is there already.
    """
    targets: dict[Path, Path] = {}
    taken: dict[Path, Path] = {}
    for file in files:
        target = out / f"{file.stem}_x{scale}.png"
        if target in taken:
            raise UserError(f"{taken[target]} and {file} would both become {target}; upscale them into two folders")
        if target.exists() and not force:
            raise UserError(f"{target} exists; replace it with --force, or choose another --out")
        taken[target] = file
        targets[file] = target
    with writing(out, "choose another --out"):
        out.mkdir(parents=True, exist_ok=True)
    return targets


def _alpha(file: Path) -> NDArray[np.uint8] | None:
    """Transparency as `(H, W, 1)`, None for an opaque image."""
    with Image.open(file) as image:
        if image.mode not in _ALPHA_MODES and "transparency" not in image.info:
            return None
        return np.array(ImageOps.exif_transpose(image).convert("RGBA"))[..., 3:]


def _label(network: nn.Module) -> str:
    return str(getattr(network, "architecture", type(network).__name__))
