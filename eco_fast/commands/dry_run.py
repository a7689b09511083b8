"""`eco-fast train --dry-run`: what a run would train, how long that takes and what it needs, from a few trials."""

import statistics
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from eco_fast.config import Config, config_toml
from eco_fast.data.find import find_images, hr_folder
from eco_fast.data.memory import free_memory, resident_bytes
from eco_fast.data.store import read_entries, sizes, stored_teachers
from eco_fast.display import Display
from eco_fast.eco.objective import needs_teacher
from eco_fast.evaluate.benchmark import Pair
from eco_fast.evaluate.inference import super_resolve
from eco_fast.evaluate.run import evaluate
from eco_fast.models import parameters_of, placed
from eco_fast.train.batches import Batch
from eco_fast.train.graph import Graphs, why_not
from eco_fast.train.inputs import (
    fits,
    load_student,
    named_store,
    runs_online,
    sizes_in_headers,
    store_of,
    training_files,
)
from eco_fast.train.lane import slot_of, streams_of
from eco_fast.train.machine import AUTOCAST, configure, resolve
from eco_fast.train.online import OnlineTeacher
from eco_fast.train.speed import memory_mb
from eco_fast.train.start import out_of_memory_named
from eco_fast.train.teacher import load_teacher, settled_precision, teacher_identity
from eco_fast.train.update import GraphedUpdate, Update, make_update
from eco_fast.train.world import World
from eco_fast.units import duration, size

_WARM_UP = {False: 2, True: 5}  # steps; by whether CUDA graphs are used, which the fourth and fifth capture
_MEASURED = 3  # steps
_SIDE = {"cuda": 256, "cpu": 64}  # LR pixels of the image that a network is timed on: a GPU is slow on small ones


class Sizes(NamedTuple):
    """The sizes of images in HR pixels, each `(N,)`."""

    heights: Tensor
    widths: Tensor

    def lr_pixels(self, scale: int) -> int:
        """Of all images together."""
        return int(((self.heights // scale) * (self.widths // scale)).sum())


class Work(NamedTuple):
    """Something that a run takes time for."""

    seconds: float
    what: str


class Trial(NamedTuple):
    """What a few steps have shown."""

    parameters: int  # that are trained
    images: Sizes | None  # for training; None where none are named
    centroids: bool  # of these images are stored and read
    parts: list[Work]
    peak: int | None  # bytes at the peak of a step; None where the system does not tell


class KeptLines(Display):
    """Keeps lines for later."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        """Keep a line."""
        self.lines.append(text)


def describe_run(config: Config, display: Display | None = None) -> None:
    """Print what would be trained, the time, the memory; then how that was found, and the resolved configuration.

    Nothing is written.

    Raises:
        UserError: As `train` would for the same configuration: images or weights are missing, memory is full.
    """
    display, notes = display or Display(), KeptLines()
    config = resolve(config)
    configure(config.run)
    free = free_memory(config.run.device)
    with display.console.status("trying a few steps"), out_of_memory_named(config):
        trial = try_run(config, notes)
    display.line(run_line(config, trial))
    display.line(time_line(trial.parts))
    display.line(memory_line(config, trial, free))
    display.line(
        f"\nmeasured on {config.run.device} in {config.run.precision}: {_MEASURED} steps on invented patches, and each "
        "network on an invented image; reading files and writing checkpoints are not in it\n"
    )
    for line in notes.lines:
        display.line(line)
    display.console.print(config_toml(config), soft_wrap=True)  # to be copied: no line is broken


def try_run(config: Config, display: Display) -> Trial:
    """Load the networks, read the sizes of the images, do a few steps.

    Raises:
        UserError: As `describe_run`.
    """
    teacher = None
    if needs_teacher(config.mode):
        teacher = placed(load_teacher(config.teacher, config.scale), config.run.device)
    online = teacher if runs_online(config) else None
    cached = teacher is not None and online is None
    images, valid = training_images(config), validation_images(config)
    student = load_student(config, display)
    seconds, peak = measure(config, student, display, online)
    beside = " with the teacher's work" if online is not None else ""
    parts = [Work(config.run.steps * seconds, f"for {config.run.steps:,} steps of {duration(seconds)}{beside}")]
    if teacher is not None and cached:
        parts.append(centroids(config, teacher, images))
    if valid is not None:
        parts.append(validation(config, student, valid))
    return Trial(parameters_of(student, trained=True), images, cached, parts, peak)


def run_line(config: Config, trial: Trial) -> str:
    """What would be trained, on what."""
    data, steps = config.data, config.run.steps
    pixels = "" if trial.images is None else f", {trial.images.lr_pixels(1) / 1e6:,.1f} megapixels"
    images = "images that are still to be named" if trial.images is None else f"{len(trial.images.heights):,} images"
    return (
        f"would train {config.student.name} x{config.scale} ({trial.parameters:,} trained parameters), mode "
        f"{config.mode}, on {images}{pixels}: {steps:,} steps of {data.batch} patches of {data.patch} LR pixels a side"
    )


def time_line(parts: list[Work]) -> str:
    """The whole time of a run, its parts, and when it would end."""
    total = sum(part.seconds for part in parts)
    end = datetime.now() + timedelta(seconds=total)
    shares = ", ".join(f"{duration(part.seconds)} {part.what}" if part.seconds else part.what for part in parts)
    return f"time: about {duration(total)}, until {end:%Y-%m-%d %H:%M} if it starts now ({shares})"


def memory_line(config: Config, trial: Trial, free: int) -> str:
    """What a run needs, against the bytes that were free on the device before anything was loaded."""
    data, images, step = config.data, trial.images, trial.peak or 0
    parts = ["not known for a step" if trial.peak is None else f"{size(step)} for a step"]
    decoded = 0
    if images is not None and data.source in ("auto", "resident"):
        decoded = resident_bytes(*images, config.scale, centroids=trial.centroids)
        if data.source == "auto" and not fits(config, *images, centroids=trial.centroids):
            parts.append(f"the images, {size(decoded)}, stay on disk")
            decoded = 0
        else:
            parts.append(f"{size(decoded)} for the images")
    verdict = "fits"
    if step > free:
        verdict = f"DOES NOT FIT; use --set optim.accumulate={2 * config.optim.accumulate}"
    elif step + decoded > free:
        verdict = "DOES NOT FIT; use --set data.source=mapped"
    return f"memory: {', '.join(parts)}; {size(free)} free on the {config.run.device}: {verdict}"


def training_images(config: Config) -> Sizes | None:
    """The sizes of the training images; None where none are named."""
    if not config.data.train:
        return None
    store = named_store(config)
    if store is not None:
        return Sizes(*sizes(list(read_entries(store))))  # to check it would leave a file there
    return Sizes(*sizes_in_headers(training_files(config)))


def validation_images(config: Config) -> Sizes | None:
    """The sizes of the images of all validation sets; None where there is no set."""
    files = [file for path in config.data.valid for file in find_images(hr_folder(path))]
    return Sizes(*sizes_in_headers(files)) if files else None


def centroids(config: Config, teacher: nn.Module, images: Sizes | None) -> Work:
    """The time in which the centroids of all training images are made before the first step."""
    if images is None:
        return Work(0.0, "centroids not counted: no training images are named")
    device, store = config.run.device, store_of(config)
    stored = stored_teachers(store, config.scale)
    precision = settled_precision(config.teacher.precision, teacher, device, stored)
    if teacher_identity(teacher, precision) in stored:
        return Work(0.0, f"centroids are in {store}")
    side = _SIDE[device]
    lr = np.full((side, side, 3), 128, dtype=np.uint8)
    seconds = _second_time(lambda: super_resolve(teacher, lr, precision=precision, device=device))
    return Work(seconds / side**2 * images.lr_pixels(config.scale), f"for centroids of {len(images.heights):,} images")


def validation(config: Config, student: nn.Module, images: Sizes) -> Work:
    """The time of all validations of a run: before the first step, every `run.valid_every`, after the last."""
    run, side = config.run, _SIDE[config.run.device]
    hr, lr = (np.full((k * side, k * side, 3), 128, dtype=np.uint8) for k in (config.scale, 1))
    pair = Pair("invented", hr, lr)
    seconds = _second_time(lambda: evaluate(student, [pair], config.scale, ssim=False, precision=run.valid_precision))
    count = 1 + -(-run.steps // run.valid_every)
    once = seconds / side**2 * images.lr_pixels(config.scale)
    return Work(count * once, f"for {count:,} validations of {duration(once)}")


def measure(
    config: Config, student: nn.Module, display: Display, online: nn.Module | None = None
) -> tuple[float, int | None]:
    """Seconds of a step on random patches, with the work of a teacher that runs online; the peak memory in bytes."""
    device, data = config.run.device, config.data
    graphed = config.run.graphed and why_not(config, World()) is None
    config = config.model_copy(update={"run": config.run.model_copy(update={"graph": graphed})})
    update: Update = make_update(config, student)
    if graphed:
        update = GraphedUpdate(update, device, display.line)
    side = data.patch * config.scale
    images = torch.zeros((data.batch, 3, side, side), dtype=torch.uint8, device=device)
    x = torch.rand((data.batch, 3, data.patch, data.patch), device=device)
    batch = Batch(x.to(memory_format=torch.channels_last), images, images, torch.full((), 0.5, device=device))
    # One after the other: a run takes at most so long.
    teach = _online_work(config, online, display) if online is not None else lambda step: None
    streams, seconds = streams_of(device), []
    for step in range(_WARM_UP[graphed] + _MEASURED):
        started = time.perf_counter()
        teach(step)
        update.schedule(step)
        update(batch)
        streams.synchronize()
        seconds.append(time.perf_counter() - started)
    peak = memory_mb(device)
    return statistics.median(seconds[-_MEASURED:]), None if peak is None else peak << 20


def _online_work(config: Config, teacher: nn.Module, display: Display) -> Callable[[int], object]:
    """What a teacher that runs online does for the batch of a step."""
    settings, data = config.teacher, config.data
    precision = AUTOCAST.get(settled_precision(settings.precision, teacher, config.run.device, []))
    rounded = settings.rounding == "8bit"
    makes = OnlineTeacher(teacher, precision=precision, rounded=rounded, compile_=config.run.compile)
    side = data.patch + 2 * settings.context
    windows = torch.zeros((data.batch, 3, side, side), dtype=torch.uint8, device=config.run.device)

    def work() -> tuple[Tensor]:
        return (makes.centroids(windows.contiguous(memory_format=torch.channels_last)),)

    if not config.run.graphed:
        return lambda step: work()
    graphs = Graphs("the work of the teacher", config.run.device, display.line)
    return lambda step: graphs(slot_of(step), "centroids", work)


def _second_time(call: Callable[[], object]) -> float:
    """Seconds of a call that has been made before."""
    call()
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
