"""Training sets for tests: of invented images, and of folders by way of a store."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from eco_fast.data.flat import FlatImages, TrainingSet
from eco_fast.data.make_store import prepare
from eco_fast.data.notes import Notes
from eco_fast.data.pixels import Image, bicubic_lr
from eco_fast.data.store import PreparedStore
from eco_fast.eco.objective import Blend, blends, reads
from tests.conftest import make_image


def training_set(scale: int, sides: tuple[tuple[int, int], ...]) -> TrainingSet:
    """Smooth images of these LR sizes, without centroids."""
    hr = [make_image(height * scale, width * scale, seed=i) for i, (height, width) in enumerate(sides)]
    lr = [bicubic_lr(image, scale) for image in hr]
    return TrainingSet(FlatImages.from_arrays(hr), FlatImages.from_arrays(lr), scale)


def with_centroids(images: TrainingSet, sr: Callable[[Image], Image]) -> TrainingSet:
    """The set with a teacher's SR of every whole LR image, and the exact 8-bit LR of that."""
    centroids = [sr(images.lr.image(i)) for i in range(len(images.lr))]
    lr = [bicubic_lr(image, images.scale) for image in centroids]
    return replace(images, centroid=FlatImages.from_arrays(centroids), centroid_lr=FlatImages.from_arrays(lr))


def blended(mode: str, alpha: float, uniform: Tensor) -> tuple[Blend, tuple[str, ...]]:
    """The weights of one batch, and the images that it reads."""
    return Blend(*blends(mode, [alpha], uniform.unsqueeze(0))[0]), reads(mode, alpha)


class Loaded(NamedTuple):
    """A folder's images as a run has them in memory."""

    names: list[str]
    images: TrainingSet
    notes: Notes


def load(paths: list[Path], store: Path, scale: int, patch: int, *, lr_dir: Path | None = None) -> Loaded:
    """Prepare a store, then load those of its images that hold a patch of so many LR pixels."""
    prepare(paths, [scale], store, lr_dir=lr_dir)
    opened = PreparedStore.open(store)
    notes = Notes()
    notes.take(opened.notes)
    entries = opened.holding(scale, patch, notes)
    return Loaded([Path(entry.source).name for entry in entries], opened.training_set(scale, entries), notes)
