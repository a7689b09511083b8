"""What a run reads: the networks, the training images, the validation images, loaded before the first step."""

from typing import NamedTuple

import torch
from torch import nn

from eco_fast.config import Config
from eco_fast.data.notes import Notes
from eco_fast.display import Display
from eco_fast.eco.objective import needs_teacher
from eco_fast.evaluate.benchmark import Pair, load_benchmark
from eco_fast.models import build
from eco_fast.models.weights import load_matching
from eco_fast.train.images import Images, load_images
from eco_fast.train.teacher import load_teacher, refuse_shared_storage


class Inputs(NamedTuple):
    """Everything a run reads, loaded and checked before the first step."""

    images: Images
    valid: list[Pair]
    student: nn.Module
    teacher: nn.Module | None  # one that runs online; a cached one has done its work


def load_inputs(config: Config, teacher: nn.Module | None, display: Display) -> Inputs:
    """Load the student, the teacher, the images; make the centroids.

    The networks come first: a wrong teacher is found before images are decoded.
    """
    data, device = config.data, config.run.device
    student = load_student(config, display)
    if not needs_teacher(config.mode):
        teacher = None
    else:
        teacher = teacher or load_teacher(config.teacher, config.scale)
        refuse_shared_storage(teacher, student)
        teacher.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stub
    online = config.teacher.mode == "online" or (config.teacher.mode == "auto" and data.source == "files")
    valid_notes = Notes()
    valid = load_benchmark(data.valid, config.scale, data.valid_lr, valid_notes) if data.valid else []
    images = load_images(config, None if online else teacher, display)
    for line in valid_notes.lines():
        display.line(f"validation: {line}")
    display.line(f"{len(images.heights)} training images, {len(valid)} validation images")
    if data.valid is not None and data.valid.resolve() in {path.resolve() for path in data.train}:
        display.line(f"WARNING: {data.valid} is trained on and validated on; its PSNR says little about other images")
    return Inputs(images, valid, student, teacher if online else None)


def load_student(config: Config, display: Display) -> nn.Module:
    """The student on its device, from `student.init` or from the seed."""
    torch.manual_seed(config.run.seed)
    student = build(config.student.name, config.scale, **config.student.options)
    if config.student.init is not None:
        display.line(load_matching(student, config.student.init))
    return student.to(config.run.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
