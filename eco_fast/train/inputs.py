"""What a run reads: the networks, the training images, the validation images, loaded before the first step."""

import os
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from eco_fast.config import Config
from eco_fast.data.files import ImageFiles
from eco_fast.data.find import find_images, hr_folder, pair_files, unique
from eco_fast.data.flat import TrainingSet
from eco_fast.data.header import image_size
from eco_fast.data.make_store import prepare
from eco_fast.data.mapped import ArrayFiles
from eco_fast.data.memory import free_memory, resident_bytes
from eco_fast.data.notes import Notes, Unusable
from eco_fast.data.store import (
    Entry,
    PreparedStore,
    centroid_kind,
    centroid_lr_kind,
    checksum,
    hr_kind,
    is_store,
    lr_kind,
    read_index,
    sizes,
    stored_teachers,
)
from eco_fast.display import Display
from eco_fast.eco.objective import needs_teacher
from eco_fast.errors import UserError
from eco_fast.evaluate.benchmark import Pair
from eco_fast.models import architecture_of, build, parameters_of, placed
from eco_fast.models.weights import load_matching, weights_file
from eco_fast.train.peers import Facts, differences, digest, first_to_see, refuse_differences, say_who_prepares
from eco_fast.train.teacher import (
    load_teacher,
    refuse_shared_storage,
    settled_precision,
    store_teacher,
    teacher_identity,
    warn_of_a_weak_teacher,
)
from eco_fast.train.valid import ValidSet, load_pairs, with_bicubic
from eco_fast.train.world import World

Images = TrainingSet | ArrayFiles | ImageFiles
"""The images of a run: on the device, as arrays of a store on disk, or as the original files."""


class Inputs(NamedTuple):
    """Everything a run reads, loaded and checked before the first step."""

    config: Config  # with the teacher's precision settled
    images: Images
    valid: list[ValidSet]
    student: nn.Module
    teacher: nn.Module | None  # one that runs online; a cached one has done its work
    about_teacher: str = ""  # for people: its file, network, size


def load_inputs(config: Config, teacher: nn.Module | None, display: Display, world: World | None = None) -> Inputs:
    """Load the student, the teacher, the images; make the centroids.

    The networks come first: a wrong teacher is found before images are decoded.

    Args:
        config: Resolved.
        teacher: A network to use in place of `config.teacher.file`.
        display: Where progress is shown.
        world: The processes of the run; all of them call this.

    Raises:
        UserError: Something is missing or wrong, or not the same on all machines.
    """
    data, world = config.data, world or World()
    several = len(world.machines) > 1
    online = runs_online(config)
    # Networks.
    with world.agree():
        student = load_student(config, display)
        teacher = _load_teacher(config, teacher, student)
        cached = teacher is not None and not online and data.train
        store = store_of(config) if cached else None
    if teacher is not None:
        config = _settle_precision(config, teacher, store, world, display)
    with world.agree():
        facts = _network_facts(config, teacher) if several else {}
    refuse_differences(facts, world, "give all machines the same weights")
    # Numbers drawn from a seed may differ in the last bit between kinds of CPU.
    world.copy(student.state_dict(keep_vars=True).values())
    # Images as they are named.
    valid_notes = Notes()
    with world.agree():
        pairs = load_pairs(data, config.scale, valid_notes)
        facts = {**_file_facts(config), **_valid_facts(pairs)} if several else {}
    refuse_differences(facts, world, "give all machines the same images")
    valid = with_bicubic(pairs, config.scale, world, display)
    # Images as they are trained on. Of the processes that see one store the first brings it up to date.
    images: Images | None = None
    first = _goes_first(config, world, display)
    for turn in (True, False):
        with world.agree():
            if first == turn:
                images = load_images(config, None if online else teacher, display, prepares=first)
    assert images is not None
    if several:
        _compare_images(config, images, None if online else teacher, world, display)
    # What was found.
    for line in valid_notes.lines():
        display.line(f"validation: {line}")
    for path in data.valid:
        if path.resolve() in {other.resolve() for other in data.train}:
            display.line(f"WARNING: {path} is trained on and validated on; its PSNR says little about other images")
    return Inputs(config, images, valid, student, teacher if online else None, _about_teacher(config, teacher, online))


def runs_online(config: Config) -> bool:
    """Whether a teacher would make its centroids while training."""
    return config.teacher.mode == "online" or (config.teacher.mode == "auto" and config.data.source == "files")


def load_student(config: Config, display: Display) -> nn.Module:
    """The student on its device, from `student.init` or from the seed."""
    torch.manual_seed(config.run.seed)
    student = build(config.student.name, config.scale, **config.student.options)
    if config.student.init is not None:
        display.line(load_matching(student, config.student.init))
    return placed(student, config.run.device)


def _load_teacher(config: Config, teacher: nn.Module | None, student: nn.Module) -> nn.Module | None:
    """The teacher on its device, None where the mode has none."""
    if not needs_teacher(config.mode):
        return None
    teacher = teacher or load_teacher(config.teacher, config.scale)
    refuse_shared_storage(teacher, student)
    return placed(teacher, config.run.device)


def _about_teacher(config: Config, teacher: nn.Module | None, online: bool) -> str:
    if teacher is None:
        return ""
    network = f"{architecture_of(teacher)}, {parameters_of(teacher):,} parameters"
    used = "online" if online else "stored"
    return f"{config.teacher.file or 'given'}: {network}, {config.teacher.precision}, {used}"


def _settle_precision(config: Config, teacher: nn.Module, store: Path | None, world: World, display: Display) -> Config:
    """Replace a teacher's precision `auto` by what the first process takes; say what that is.

    Args:
        config: Of the run.
        teacher: On its device.
        store: What holds its centroids, or will; None where they are made while training.
        world: All processes of the run call this.
        display: Where the line is shown.
    """
    settings = config.teacher
    stored = [] if store is None else stored_teachers(store, config.scale)
    precision = world.share(settled_precision(settings.precision, teacher, config.run.device, stored))
    rounded = "" if store is None and settings.rounding == "none" else ", rounded to 8 bit"
    held = f"; {store} holds them" if teacher_identity(teacher, precision) in stored else ""
    display.line(f"centroids in {precision}{rounded}{held}")
    return config.model_copy(update={"teacher": settings.model_copy(update={"precision": precision})})


def _goes_first(config: Config, world: World, display: Display) -> bool:
    """Whether this process prepares the store: one does on a machine by itself, one for every folder on several."""
    if len(world.machines) < 2 or config.data.source == "files" or not config.data.train or named_store(config):
        return world.leads
    folder = store_of(config)
    firsts = first_to_see(folder, world)
    display.line(say_who_prepares(folder, firsts, world))
    return firsts[world.rank] == world.rank


def _compare_images(config: Config, images: Images, teacher: nn.Module | None, world: World, display: Display) -> None:
    """Refuse machines with other pixels; those of centroids may differ, as GPUs do, and that is said."""
    identity = None if teacher is None else teacher_identity(teacher, config.teacher.precision)
    facts, centroids = _pixel_facts(config, images, identity)
    refuse_differences(facts, world, "give all machines the same images, or one store: on a shared disk, or as a copy")
    for line in differences(centroids, world):
        display.line(f"note: {line}; each trains on its own")


def load_images(config: Config, teacher: nn.Module | None, display: Display, *, prepares: bool = True) -> Images:
    """Find, prepare and check the training images.

    Args:
        config: With the device resolved.
        teacher: Makes the centroids, on the device; None where none are stored.
        display: Where progress is shown.
        prepares: Make the store, or bring it up to date; else another process has done so.

    Raises:
        UserError: Images are missing or wrong, or the source cannot be had.
    """
    if not config.data.train:
        raise UserError("no training images are named; give a folder with --train DIR")
    notes = Notes()
    if config.data.source == "files":
        if teacher is not None:
            raise UserError(
                "data.source=files has no stored centroids; use --set teacher.mode=online, or --set data.source=mapped"
            )
        images: Images = _from_files(config, notes)
    else:
        images = _from_store(config, teacher, display, notes, prepares)
    if config.data.strict:
        notes.raise_if_any()
    for line in notes.lines():
        display.line(line)
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


def store_of(config: Config) -> Path:
    """The store of a run, named or kept for its images."""
    return named_store(config) or config.data.store or cache_folder(config)


def training_files(config: Config, notes: Notes | None = None) -> list[Path]:
    """The original image files that the configuration names, each once."""
    return unique(file for path in config.data.train for file in find_images(hr_folder(path), notes))


def sizes_in_headers(files: Iterable[Path]) -> tuple[Tensor, Tensor]:
    """Heights and widths of image files, read without decoding them."""
    heights, widths = torch.tensor([image_size(file) for file in files]).unbind(1)
    return heights, widths


def _from_store(
    config: Config, network: nn.Module | None, display: Display, notes: Notes, prepares: bool
) -> TrainingSet | ArrayFiles:
    data, scale, device = config.data, config.scale, config.run.device
    teacher = None if network is None else store_teacher(network, scale, config.teacher.precision, device)
    # Make the store, or bring it up to date.
    path = store_of(config)
    if prepares and named_store(config) is None:
        prepare(data.train, [scale], path, lr_dir=data.train_lr, teacher=teacher, progress=display.rate)
    # Open it, and find the images that serve.
    with display.count("images checked") as count:
        store = PreparedStore.open(path, progress=count)
    if teacher is not None and teacher.identity not in store.teachers(scale):
        precision = config.teacher.precision
        raise UserError(
            f"{path} has no {precision} centroids of this teacher at x{scale}; "
            f"add them: eco-fast prepare DIR --scale {scale} --teacher FILE --precision {precision} --out {path}"
        )
    notes.take(store.notes)
    entries = store.holding(scale, data.patch, notes)
    identity = None if teacher is None else teacher.identity
    # Leave it on disk, or load it.
    resident = data.source != "auto" or fits(config, *sizes(entries), centroids=teacher is not None)
    if data.source == "mapped" or not resident:
        return _array_files(store, entries, scale, identity)
    with display.count("images loaded") as count:
        images = store.training_set(scale, entries, teacher=identity, progress=count)
    if teacher is not None:
        warn_of_a_weak_teacher(images, display)
    return images.to(device)


def fits(config: Config, heights: Tensor, widths: Tensor, *, centroids: bool) -> bool:
    """Whether images of these HR sizes `(N,)` fit on the device, beside what training takes there."""
    device = config.run.device
    stored = resident_bytes(heights, widths, config.scale, centroids=centroids)
    # Networks, optimiser and activations: half a GPU, 2 GB on the CPU.
    training = torch.cuda.mem_get_info()[1] // 2 if device == "cuda" else 2 << 30
    return stored + training <= free_memory(device)


def _array_files(store: PreparedStore, entries: list[Entry], scale: int, teacher: str | None) -> ArrayFiles:
    def paths(kind: str) -> list[str]:
        return [str(store.file(kind, entry)) for entry in entries]

    heights, widths = sizes(entries)
    return ArrayFiles(
        scale,
        heights // scale,
        widths // scale,
        paths(hr_kind()),
        paths(lr_kind(scale)),
        None if teacher is None else paths(centroid_kind(scale, teacher)),
        None if teacher is None else paths(centroid_lr_kind(scale, teacher)),
    )


def _from_files(config: Config, notes: Notes) -> ImageFiles:
    """The original files, decoded while training."""
    data, scale = config.data, config.scale
    files = training_files(config, notes)
    own = None if data.train_lr is None else pair_files(files, data.train_lr, scale)
    kept, heights, widths = [], [], []
    unusable = Unusable()
    for i, file in enumerate(files):
        height, width = 0, 0
        with unusable.collected(str(file)):
            height, width = image_size(file, notes)
        if min(height, width) // scale < data.patch:
            least = data.patch * scale
            notes.add(f"images left out, smaller than a patch ({least} x {least})", file.name)
            continue
        kept.append(i)
        heights.append(height)
        widths.append(width)
    unusable.raise_if_any()
    if not kept:
        raise UserError("no training image holds a patch; give larger images or a smaller data.patch")
    return ImageFiles(
        scale,
        torch.tensor(heights),
        torch.tensor(widths),
        [str(files[i]) for i in kept],
        None if own is None else [str(own[i]) for i in kept],
    )


def _network_facts(config: Config, teacher: nn.Module | None) -> Facts:
    """What all machines must have the same of, before anything is made of it."""
    facts: dict[str, str | int] = {}
    if teacher is not None:
        facts["the weights of the teacher"] = teacher_identity(teacher, config.teacher.precision)
    if config.student.init is not None:
        content = weights_file(config.student.init).read_bytes()
        facts["the file of student.init"] = blake2b(content, digest_size=6).hexdigest()
    return facts


def _file_facts(config: Config) -> Facts:
    """Of the training images as they are named: nothing is decoded."""
    if named_store(config) is not None:
        return {"the kind of training images": "a prepared store"}
    files = training_files(config)
    return {
        "the kind of training images": "files",
        "the number of training images": len(files),
        "the names of training images": digest(file.name for file in files),
        "the sizes of the files of training images": digest(file.stat().st_size for file in files),
    }


def _valid_facts(loaded: Mapping[str, list[Pair]]) -> Facts:
    valid = [pair for pairs in loaded.values() for pair in pairs]
    return {
        "the number of validation images": " + ".join(str(len(pairs)) for pairs in loaded.values()),
        "the names of validation images": digest(pair.name for pair in valid),
        "the pixels of validation images": digest((checksum(pair.hr), checksum(pair.lr)) for pair in valid),
    }


def _pixel_facts(config: Config, images: Images, teacher: str | None) -> tuple[Facts, Facts]:
    """Of the training images as they are trained on; and of the centroids by a teacher of this identity."""
    facts: dict[str, str | int] = {
        "the number of training images": len(images.heights),
        "the sizes of training images": digest(torch.stack((images.heights, images.widths)).tolist()),
    }
    if isinstance(images, ImageFiles):
        return facts, {}
    entries = [Entry.parse(record) for record in read_index(store_of(config))["images"]]
    facts["the names of training images"] = digest(Path(entry.source).name for entry in entries)

    def sums(kind: str) -> str:
        return digest(entry.crc32.get(kind) for entry in entries)

    facts["the pixels of training images"] = digest([sums(hr_kind()), sums(lr_kind(config.scale))])
    return facts, {} if teacher is None else {"the pixels of centroids": sums(centroid_kind(config.scale, teacher))}
