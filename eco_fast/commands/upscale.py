"""`eco-fast upscale`: photographs of any size and format through a network, to files like them."""

import glob
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from eco_fast.data.decode import to_8bit
from eco_fast.data.encode import FORMATS, encode, refuse_unwritable
from eco_fast.data.find import OnFault, find_images
from eco_fast.data.notes import Notes
from eco_fast.data.photograph import Photograph, Pixels, read_photograph
from eco_fast.display import Display
from eco_fast.errors import Stopped, UserError
from eco_fast.evaluate.bicubic import bicubic_upsample
from eco_fast.evaluate.inference import Tiling, plan_tiles, refuse_wrong_choices, super_resolve
from eco_fast.evaluate.pictures import save_comparison
from eco_fast.files import opened_atomically, writing
from eco_fast.models import architecture_of, placed
from eco_fast.models.weights import load_network
from eco_fast.stop import stop_signal
from eco_fast.train.machine import usable_device, use_threads
from eco_fast.units import clock, counted, duration, size

_LUMA = np.array([299, 587, 114], dtype=np.uint32)  # thousandths of R, G, B (ITU-R BT.601)
_BAND = 128  # rows

Say = Callable[[str], None]


class Upscaled(NamedTuple):
    """What became of the images."""

    made: list[Path]
    failed: list[UserError]
    skipped: list[Path]  # those that were there already


def upscale(
    images: Sequence[Path],
    weights: Path,
    out: Path,
    *,
    network_name: str | None = None,
    scale: int | None = None,
    raw: bool = False,
    device: str = "auto",
    threads: int | None = None,
    precision: str = "fp32",
    tile: int | None = None,
    ensemble: bool = False,
    compare: bool = False,
    kind: str = "png",
    force: bool = False,
    skip_existing: bool = False,
    strict: bool = False,
) -> Upscaled:
    """Write `OUT/SUBFOLDER/NAME_xS.png` for every image; what cannot be read is named, and the others are made.

    Colour profile, resolution and EXIF data are kept, transparency is enlarged by bicubic; grey stays grey and 16 bits
    stay 16 bits. Images of one folder that differ in their ending alone keep it: `NAME.jpg_xS.png`.

    Args:
        images: Files, folders, or text files of paths.
        weights: Run, checkpoint or weights file.
        out: Folder, made if it is not there.
        network_name: Network of a bare weights file.
        scale: Scale of a bare weights file.
        raw: Take a run's weights themselves instead of their average.
        device: As `usable_device` takes it.
        threads: Of the CPU; None leaves them to PyTorch.
        precision: "fp32", "bf16" or "fp16".
        tile: Side of the tiles in LR pixels; by default an image goes through whole where memory allows it.
        ensemble: The mean over eight orientations, eight times as slow.
        compare: Write `NAME_xS_compare.png` too: bicubic and the network side by side.
        kind: One of `FORMATS`.
        force: Replace files.
        skip_existing: Leave out images whose file is there already.
        strict: Raise the first fault of an image instead of going on.

    Raises:
        UserError: Bad input, nothing to do, a file that is there already or cannot be written; with `strict` any fault.
        Stopped: Ctrl-C or SIGTERM, heard after an image or a tile.
    """
    began = time.monotonic()
    refuse_wrong_choices(precision, tile)
    if kind not in FORMATS:
        raise UserError(f"--format {kind} cannot be written; take one of {', '.join(FORMATS)}")
    if force and skip_existing:
        raise UserError("--force and --skip-existing contradict each other; take one of them")
    use_threads(threads)
    device = usable_device(device)
    network = placed(load_network(weights, name=network_name, scale=scale, raw=raw), device)
    display, notes, failed = Display(), Notes(), list[UserError]()

    def fault(error: UserError) -> None:
        if strict:
            raise error
        failed.append(error)
        display.line(f"failed: {error}")

    factor = int(network.scale)  # type: ignore[arg-type]
    files = _found(images, out, notes, fault)
    targets = _targets(files, out, f"_x{factor}.{kind}", fault)
    skipped = [] if force else [target for target in targets if target.exists()]
    if skipped and not skip_existing:
        raise UserError(
            f"{skipped[0]} exists; replace it with --force, leave it with --skip-existing, or choose another --out"
        )
    there = set(skipped)
    todo = {target: file for target, file in targets.items() if target not in there}
    work = _Work(network, factor, precision, tile, ensemble, kind, compare, notes, display.line)
    with writing(out, "choose another --out"):
        out.mkdir(parents=True, exist_ok=True)
    made = _make(todo, work, display, fault)
    for line in notes.lines():
        display.line(line)
    display.line(_summary(len(made), len(failed), len(skipped), factor, out, time.monotonic() - began))
    return Upscaled(made, failed, skipped)


def _make(todo: Mapping[Path, Path], work: "_Work", display: Display, fault: OnFault) -> list[Path]:
    """Make what is named of these images, one after the other; returns what was made.

    Raises:
        UserError: A file cannot be written.
        Stopped: As `upscale`.
    """
    made: list[Path] = []
    with stop_signal() as stop, display.count("upscaling") as show:
        for done, (target, file) in enumerate(todo.items()):

            def status(text: str, done: int = done) -> None:
                if stop.asked:
                    raise Stopped(f"stopped, {len(made)} of {len(todo)} images done; --skip-existing goes on")
                show(done, len(todo), text)

            try:
                enlarged = work.enlarged(file, status)
            except UserError as error:
                fault(error)
                continue
            show(done, len(todo), f"{file.name}, writing")
            work.save(target, enlarged)
            made.append(target)
    return made


@dataclass(frozen=True)
class _Work:
    """What is done with every image."""

    network: nn.Module
    factor: int
    precision: str
    tile: int | None
    ensemble: bool
    kind: str
    compare: bool
    notes: Notes
    say: Say

    def enlarged(self, file: Path, status: Say) -> tuple[Photograph, NDArray[np.uint8] | None]:
        """The image, and bicubic's for the comparison.

        Raises:
            UserError: It cannot be read, the format cannot hold it, or the network fails.
        """
        status(file.name)
        try:
            photo = read_photograph(file, self.notes)
            refuse_unwritable(file, photo, self.factor, self.kind)
            if self.kind in ("jpg", "webp") and photo.pixels.dtype == np.uint16:
                self.notes.add("16-bit images rounded to 8 bit", file.name)
            grey = photo.pixels.shape[2] == 1
            lr = photo.pixels.repeat(3, axis=2) if grey else photo.pixels
            sr = self._super_resolved(file, lr, status)
            bicubic = bicubic_upsample(to_8bit(lr), self.factor) if self.compare else None
            alpha = None if photo.alpha is None else bicubic_upsample(photo.alpha, self.factor)
        except MemoryError:
            raise UserError(f"memory does not suffice for {file}; close other programs, or cut it into parts") from None
        return photo._replace(pixels=_luma(sr) if grey else sr, alpha=alpha), bicubic

    def _super_resolved(self, file: Path, lr: Pixels, status: Say) -> Pixels:
        """Through the network; tiles are told of, with the time they take."""
        plan = plan_tiles(self.network, lr, precision=self.precision, tile=self.tile, ensemble=self.ensemble)
        began = time.monotonic()

        def progress(done: int, total: int) -> None:
            each = (time.monotonic() - began) / done
            if done == 1:
                self.say(_of_tiles(file, lr, plan, total * each, self.tile))
            status(f"{file.name}, tile {done}/{total}, ready in {clock(each * (total - done))}")

        return super_resolve(
            self.network, lr, precision=self.precision, tile=plan.side, ensemble=self.ensemble, progress=progress
        )

    def save(self, target: Path, enlarged: tuple[Photograph, NDArray[np.uint8] | None]) -> None:
        """Write the image and its comparison.

        Raises:
            UserError: A file cannot be written.
        """
        photo, bicubic = enlarged
        with writing(target, "make room and go on with --skip-existing, or choose another --out"):
            target.parent.mkdir(parents=True, exist_ok=True)
            for half in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):  # of a run that was killed right then
                half.unlink()
            with opened_atomically(target) as file:
                encode(photo, self.kind, file)
        if bicubic is not None:
            sr = np.broadcast_to(to_8bit(photo.pixels), bicubic.shape)  # grey has one channel
            panels = [("bicubic", bicubic), (architecture_of(self.network), sr)]
            save_comparison(_comparison(target), panels, figures=False)


def _found(images: Sequence[Path], out: Path, notes: Notes, fault: OnFault) -> dict[Path, Path]:
    """All images, each once, and where below `out` they belong: in the subfolder where they lie.

    Raises:
        UserError: There are none.
    """
    found: dict[Path, Path] = {}
    seen: set[Path] = set()
    for path in images:
        own = out.resolve() if out.resolve() != path.resolve() else None  # results lie there, of a run before
        for file in find_images(path, notes, fault):
            if file.resolve() not in seen and (not path.is_dir() or own not in file.resolve().parents):
                seen.add(file.resolve())
                found[file] = file.relative_to(path) if path.is_dir() else Path(file.name)
    if not found:
        raise UserError(f"no images in {', '.join(map(str, images))}; name images, or folders that hold some")
    return found


def _targets(files: dict[Path, Path], out: Path, ending: str, fault: OnFault) -> dict[Path, Path]:
    """What is written of which image; one that differs from another in its ending alone keeps it in its name."""
    twins = Counter(place.with_suffix("") for place in files.values())
    targets: dict[Path, Path] = {}
    for file, place in files.items():
        stem = place.name if twins[place.with_suffix("")] > 1 else place.stem
        target = out / place.with_name(f"{stem}{ending}")
        if target in targets:
            fault(UserError(f"{targets[target]} and {file} would both become {target}; upscale them into two folders"))
        else:
            targets[target] = file
    # Results of a run before, where images are upscaled beside themselves.
    results = {made.resolve() for target in targets for made in (target, _comparison(target))}
    return {target: file for target, file in targets.items() if file.resolve() not in results}


def _comparison(target: Path) -> Path:
    return target.with_name(f"{target.stem}_compare.png")


def _luma(rgb: Pixels) -> Pixels:
    """A grey image, `(H, W, 1)`, of what the network made of one in three channels; in bands, for 32 bits take room."""
    grey = np.empty((*rgb.shape[:2], 1), dtype=rgb.dtype)
    for top in range(0, len(rgb), _BAND):
        grey[top : top + _BAND, :, 0] = (rgb[top : top + _BAND] @ _LUMA + 500) // 1000
    return grey


def _of_tiles(file: Path, lr: Pixels, plan: Tiling, seconds: float, asked: int | None) -> str:
    """One line: `a.jpg: 6000 x 4000 goes through in 48 tiles of 500 x 500, about 3 min, since 2.1 GB are free`."""
    reason = f"since {size(plan.free)} are free" if asked is None else "as --tile asks"
    height, width = lr.shape[:2]
    return (
        f"{file.name}: {width} x {height} goes through in {plan.number} tiles of {plan.side} x {plan.side}, "
        f"about {duration(seconds)}, {reason}"
    )


def _summary(made: int, failed: int, skipped: int, factor: int, out: Path, seconds: float) -> str:
    """One line: `18 images x2 in OUT, 3 failed, 2 skipped (there already), 41 s`."""
    parts = [f"{counted(made, 'image')} x{factor} in {out}"]
    parts += [f"{failed} failed"] if failed else []
    parts += [f"{skipped} skipped (there already)"] if skipped else []
    return ", ".join([*parts, duration(seconds)])
