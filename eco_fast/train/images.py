"""From the configuration to a source of patches: which store, which images of it, resident or read from disk."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor, nn

from eco_fast.config import Config
from eco_fast.data.dali import has_dali, load_dali
from eco_fast.data.decode import Decoder
from eco_fast.data.files import Files, ImageFiles
from eco_fast.data.find import find_images, hr_folder, pair_files, unique
from eco_fast.data.flat import TrainingSet
from eco_fast.data.images import image_size
from eco_fast.data.make_store import Teacher, prepare
from eco_fast.data.memory import choose_source, free_memory, resident_bytes
from eco_fast.data.notes import Notes
from eco_fast.data.packed import Packed, PackedFiles
from eco_fast.data.source import NeedsOf, PlanOf, Resident, Source
from eco_fast.data.store import (
    Entry,
    PreparedStore,
    centroid_kind,
    centroid_lr_kind,
    hr_kind,
    is_store,
    lr_kind,
    sizes,
)
from eco_fast.display import Display
from eco_fast.errors import UserError
from eco_fast.train.teacher import store_teacher, warn_of_a_weak_teacher


@dataclass(frozen=True)
class TrainingImages:
    """The images of a run and how to get at them."""

    heights: Tensor  # LR pixels, int64 (N,)
    widths: Tensor
    open: Callable[[PlanOf, NeedsOf], Source]
    resident: TrainingSet | None  # where they lie in memory
    notes: Notes


def load_images(config: Config, teacher: nn.Module | None, display: Display) -> TrainingImages:
    """Find, prepare and check the training images.

    Args:
        config: With the device resolved.
        teacher: Makes the centroids, on the device; None where none are stored.
        display: Where progress is shown.

    Raises:
        UserError: Images are missing or wrong, or the source cannot be had.
    """
    data = config.data
    if not data.train:
        raise UserError("no training images are named; give a folder with --train DIR")
    if data.source == "packed":
        load_dali("packed")  # now, not after minutes of decoding
    images = _from_files(config, teacher) if data.source == "files" else _from_store(config, teacher, display)
    for line in images.notes.lines():
        display.line(line)
    if data.strict:
        images.notes.raise_if_any()
    return images


def cache_folder(config: Config) -> Path:
    """Where a run keeps the store of images that are not prepared yet; the same for the same folders."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eco-fast"
    named = [str(Path(path).resolve()) for path in (*config.data.train, *filter(None, [config.data.train_lr]))]
    return root / f"{Path(config.data.train[0]).stem}-{blake2b(repr(named).encode(), digest_size=6).hexdigest()}"


def named_store(config: Config) -> Path | None:
    """The store that the user names in place of images.

    Raises:
        UserError: Something else is named beside it.
    """
    stores = [path for path in config.data.train if is_store(path)]
    if stores and len(config.data.train) > 1:
        raise UserError(f"{stores[0]} is a prepared store; name it alone, or prepare all folders into one store")
    return stores[0] if stores else None


def training_files(config: Config) -> list[Path]:
    """The original image files that the configuration names, each once."""
    return unique(file for path in config.data.train for file in find_images(hr_folder(path)))


def sizes_in_headers(files: Iterable[Path]) -> tuple[Tensor, Tensor]:
    """Heights and widths of image files, read without decoding them."""
    heights, widths = torch.tensor([image_size(file) for file in files]).unbind(1)
    return heights, widths


def chosen_source(config: Config, heights: Tensor, widths: Tensor, *, centroids: bool) -> str:
    """`resident` or `packed`: as configured, or what fits on the device.

    Args:
        config: With the device resolved.
        heights, widths: HR pixels `(N,)`; images that hold no patch are not counted.
        centroids: Whether the teacher's images are stored too.

    Raises:
        UserError: The images have to be read from disk, and DALI is not installed.
    """
    data, device, scale = config.data, config.run.device, config.scale
    if data.source != "auto":
        return data.source
    held = torch.minimum(heights, widths) // scale >= data.patch
    stored = resident_bytes(heights[held], widths[held], scale, centroids=centroids)
    training, free = _room_for_training(device), free_memory(device)
    chosen = choose_source(stored, training, device, free=free)
    if chosen == "packed" and not has_dali():
        raise UserError(
            f"the training images take {stored >> 20:,} MB decoded, which beside {training >> 20:,} MB for training do "
            f"not fit into the {free >> 20:,} MB that are free on {device}, and reading patches from disk needs NVIDIA "
            "DALI; pip install nvidia-dali-cuda130, name fewer images, or try it nevertheless with --set "
            "data.source=resident"
        )
    return chosen


def _from_store(config: Config, network: nn.Module | None, display: Display) -> TrainingImages:
    data, scale, device = config.data, config.scale, config.run.device
    teacher = None if network is None else store_teacher(network, scale, config.teacher.precision, device)
    path, centroids = named_store(config), teacher is not None
    if path is None:
        if data.source == "auto" and not has_dali():  # the same
            chosen_source(config, *sizes_in_headers(training_files(config)), centroids=centroids)
        path = data.store or cache_folder(config)
        prepare(data.train, [scale], path, lr_dir=data.train_lr, teacher=teacher, progress=display.rate)
    with display.count("checking") as count:
        store = PreparedStore.open(path, progress=count)
    if teacher is not None and teacher.identity not in store.teachers(scale):
        raise UserError(f"{path} has no centroids of this teacher at x{scale}; run eco-fast prepare with --teacher")
    notes = store.notes.copy()
    entries = store.holding(scale, data.patch, notes)
    heights, widths = sizes(entries)
    if chosen_source(config, heights, widths, centroids=centroids) == "packed":
        files = _packed_files(store, entries, scale, teacher)

        def open_packed(plan: PlanOf, needs: NeedsOf) -> Source:
            return Packed(files, plan, needs, config.run.steps, data.patch, device)

        return TrainingImages(heights // scale, widths // scale, open_packed, None, notes)
    with display.count("loading") as count:
        identity = None if teacher is None else teacher.identity
        images = store.training_set(scale, entries, teacher=identity, progress=count)
    if teacher is not None:
        warn_of_a_weak_teacher(images, display)
    return _resident(images, device, notes)


def _packed_files(store: PreparedStore, entries: list[Entry], scale: int, teacher: Teacher | None) -> PackedFiles:
    def paths(kind: str) -> list[str]:
        return [str(store.file(kind, entry)) for entry in entries]

    heights, widths = sizes(entries)
    made = None if teacher is None else [kind(scale, teacher.identity) for kind in (centroid_kind, centroid_lr_kind)]
    return PackedFiles(
        scale,
        heights // scale,
        widths // scale,
        paths(hr_kind()),
        paths(lr_kind(scale)),
        None if made is None else paths(made[0]),
        None if made is None else paths(made[1]),
    )


def _resident(images: TrainingSet, device: str, notes: Notes) -> TrainingImages:
    heights, widths = images.lr.heights, images.lr.widths
    on_device = images.to(device)
    return TrainingImages(heights, widths, lambda plan, needs: Resident(on_device, plan), on_device, notes)


def _from_files(config: Config, teacher: nn.Module | None) -> TrainingImages:
    """The original files, decoded while training."""
    data, scale = config.data, config.scale
    if data.decoder == "mixed" and config.run.device != "cuda":
        raise UserError("data.decoder=mixed decodes on a GPU and run.device is cpu; leave it out")
    if teacher is not None:
        raise UserError("data.source=files has no stored centroids; use --set data.source=packed, or --mode vanilla")
    files = training_files(config)
    own = None if data.train_lr is None else pair_files(files, data.train_lr, scale)
    notes = Notes()
    kept, heights, widths = [], [], []
    for i, file in enumerate(files):
        height, width = image_size(file, notes)
        if min(height, width) // scale < data.patch:
            least = data.patch * scale
            notes.add(f"images left out, smaller than a patch ({least} x {least})", file.name)
            continue
        kept.append(i)
        heights.append(height)
        widths.append(width)
    if not kept:
        raise UserError("no training image holds a patch; give larger images or a smaller data.patch")
    images = ImageFiles(
        scale,
        torch.tensor(heights),
        torch.tensor(widths),
        [str(files[i]) for i in kept],
        None if own is None else [str(own[i]) for i in kept],
    )

    def open_files(plan: PlanOf, needs: NeedsOf) -> Source:
        device, each = config.run.device, patches_per_image(config)
        decoder = Decoder(gpu=torch.cuda.current_device() if data.decoder == "mixed" else None)
        return Files(images, plan, needs, config.run.steps, data.patch, each, device, decoder=decoder)

    return TrainingImages(images.heights, images.widths, open_files, None, notes)


def patches_per_image(config: Config) -> int:
    """`data.patches_per_image`, where 0 stands for what suits the source."""
    return config.data.patches_per_image or (16 if config.data.source == "files" else 1)


def _room_for_training(device: str) -> int:
    """Bytes left to networks, optimiser and activations when `auto` decides: half a GPU, 2 GB on the CPU."""
    return torch.cuda.mem_get_info()[1] // 2 if device == "cuda" else 2 << 30
