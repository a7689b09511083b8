"""`eco-fast train --dry-run`: what a run would use, from a few steps on invented images."""

import statistics
import time

import torch
from torch import nn

from eco_fast.config import Config, config_toml
from eco_fast.data.memory import free_memory, resident_bytes
from eco_fast.data.store import PreparedStore, sizes
from eco_fast.display import Display
from eco_fast.eco.objective import needs_teacher
from eco_fast.train.batches import Batch
from eco_fast.train.inputs import load_student, named_store, sizes_in_headers, training_files
from eco_fast.train.lane import streams_of
from eco_fast.train.machine import configure, resolve
from eco_fast.train.speed import memory_mb
from eco_fast.train.start import out_of_memory_named
from eco_fast.train.teacher import load_teacher
from eco_fast.train.update import make_update

_WARM_UP, _MEASURED = 2, 3  # steps


def describe_run(config: Config, display: Display | None = None) -> None:
    """Print the resolved configuration, then sizes, memory and time. Nothing is written.

    Raises:
        UserError: As `train` would for the same configuration: images or weights are missing, memory is full.
    """
    display = display or Display()
    config = resolve(config)
    configure(config.run)
    display.line(config_toml(config))
    if needs_teacher(config.mode):
        load_teacher(config.teacher, config.scale)
    if config.data.train:
        display.line(images_line(config))
    student = load_student(config, display)
    parameters = sum(p.numel() for p in student.parameters() if p.requires_grad)
    display.line(f"student: {config.student.name} x{config.scale}, {parameters:,} trained parameters")
    with out_of_memory_named(config):
        seconds, megabytes = measure(config, student)
    hours = config.run.steps * seconds / 3600
    display.line(
        f"a step: {1000 * seconds:.1f} ms and {megabytes} MB on {config.run.device}, measured on {_MEASURED} steps; "
        f"{config.run.steps:,} steps: about {hours:.1f} h, without the teacher, validation and checkpoints"
    )


def images_line(config: Config) -> str:
    """How many images there are, and what they take decoded."""
    store = named_store(config)
    if store is not None:
        heights, widths = sizes(list(PreparedStore.open(store).entries))
    else:
        heights, widths = sizes_in_headers(training_files(config))
    needed = resident_bytes(heights, widths, config.scale, centroids=needs_teacher(config.mode))
    free = free_memory(config.run.device)
    return f"{len(heights)} training images, {needed >> 20:,} MB decoded; {free >> 20:,} MB are free on the device"


def measure(config: Config, student: nn.Module) -> tuple[float, int | None]:
    """Seconds of a step on random patches, and the peak memory in MB."""
    device, data = config.run.device, config.data
    update = make_update(config.model_copy(update={"run": config.run.model_copy(update={"graph": False})}), student)
    side = data.patch * config.scale
    images = torch.zeros((data.batch, 3, side, side), dtype=torch.uint8, device=device)
    x = torch.rand((data.batch, 3, data.patch, data.patch), device=device)
    batch = Batch(x.to(memory_format=torch.channels_last), images, images, torch.full((), 0.5, device=device))
    streams, seconds = streams_of(device), []
    for step in range(_WARM_UP + _MEASURED):
        started = time.perf_counter()
        update.schedule(step)
        update(batch)
        streams.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[_WARM_UP:]), memory_mb(device)
