"""The frozen teacher: loaded, judged, kept apart from the student, and known by its weights."""

import statistics
from collections.abc import Collection
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from torch import nn

from eco_fast.config import TeacherConfig
from eco_fast.data.flat import TrainingSet
from eco_fast.data.make_store import Teacher
from eco_fast.data.pixels import crop_to_multiple
from eco_fast.display import Display
from eco_fast.errors import UserError
from eco_fast.evaluate.bicubic import bicubic_upsample
from eco_fast.evaluate.inference import super_resolve
from eco_fast.evaluate.metrics import psnr_y
from eco_fast.models.weights import load_network
from eco_fast.train.machine import fast_on_gpu

_CHECKED_IMAGES = 8
_PRECISIONS = ("fp32", "bf16")


def load_teacher(config: TeacherConfig, scale: int) -> nn.Module:
    """The teacher of a configuration, frozen.

    Raises:
        UserError: No file is named, or it holds another network or scale.
    """
    if config.file is None:
        raise UserError("this mode needs a teacher; name its weights with --teacher FILE, or train with --mode vanilla")
    return freeze(load_network(Path(config.file), name=config.name, scale=scale))


def freeze(teacher: nn.Module) -> nn.Module:
    """Put a teacher into evaluation mode without gradients, in place, and return it."""
    return teacher.eval().requires_grad_(False)


def refuse_shared_storage(teacher: nn.Module, *others: nn.Module) -> None:
    """Refuse a teacher that shares memory with the student or its EMA.

    A teacher that is the student, its average, or trained together with it chases its own output (Lee & Heo 2024).

    Raises:
        UserError: A parameter or buffer of the teacher lies in the same storage as one of `others`.
    """
    ours = {_storage(tensor): name for name, tensor in teacher.state_dict(keep_vars=True).items() if tensor.numel()}
    for other in others:
        for name, tensor in other.state_dict(keep_vars=True).items():
            if tensor.numel() and _storage(tensor) in ours:
                raise UserError(
                    f"the teacher shares the memory of {ours[_storage(tensor)]} with the student's {name}; "
                    "load the teacher as a network of its own from trained weights"
                )


def teacher_identity(network: nn.Module, precision: str) -> str:
    """A short hash of what decides a teacher's centroids: its kind, weights and precision."""
    digest = blake2b(f"{type(network).__qualname__} {precision}".encode(), digest_size=6)
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def settled_precision(choice: str, network: nn.Module, device: str, stored: Collection[str]) -> str:
    """What `auto` means for a teacher: the precision of centroids that are there, else what is fast.

    Centroids are rounded to 8 bit, which leaves little of what bf16 costs.

    Args:
        choice: auto, fp32 or bf16.
        network: The teacher.
        device: "cuda" or "cpu".
        stored: Identities of teachers whose centroids are there.

    Raises:
        UserError: There is no such precision.
    """
    if choice in _PRECISIONS:
        return choice
    if choice != "auto":
        raise UserError(f"unknown precision {choice!r}; take one of auto, {', '.join(_PRECISIONS)}")
    fast = fast_on_gpu(device)
    by_preference = sorted(_PRECISIONS, key=lambda precision: precision != fast)
    return next((each for each in by_preference if teacher_identity(network, each) in stored), fast)


def store_teacher(network: nn.Module, scale: int, precision: str, device: str) -> Teacher:
    """A network as `prepare` takes it."""
    return Teacher(
        scale,
        teacher_identity(network, precision),
        lambda lr: super_resolve(network, lr, precision=precision, device=device),
    )


def warn_of_a_weak_teacher(images: TrainingSet, display: Display) -> None:
    """Say how good the centroids are, and warn if they are no better than bicubic."""
    ours, bicubic = teacher_margin(images)
    if ours > bicubic:
        display.line(f"teacher: {ours:.2f} dB PSNR-Y on training images (bicubic {bicubic:.2f} dB)")
    else:
        display.line(
            f"WARNING: the teacher ({ours:.2f} dB PSNR-Y) is not better than bicubic ({bicubic:.2f} dB) on training "
            "images; check its weights and its scale before you trust this run"
        )


def teacher_margin(images: TrainingSet) -> tuple[float, float]:
    """Mean PSNR-Y of the centroids and of bicubic upsampling on a few images spread over the set."""
    if images.centroid is None:
        raise ValueError("the training set has no centroids")
    total = len(images.lr)
    chosen = np.unique(np.linspace(0, total - 1, min(total, _CHECKED_IMAGES)).astype(int))
    ours, bicubic = [], []
    for i in chosen:
        hr = crop_to_multiple(images.hr.image(i), images.scale)
        ours.append(psnr_y(images.centroid.image(i), hr, images.scale))
        bicubic.append(psnr_y(bicubic_upsample(images.lr.image(i), images.scale), hr, images.scale))
    return statistics.fmean(ours), statistics.fmean(bicubic)


def _storage(tensor: object) -> int:
    return tensor.untyped_storage().data_ptr()  # type: ignore[attr-defined]
