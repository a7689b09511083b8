"""Images in memory, back to back in one tensor: HR, LR and the teacher's centroids."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from eco_fast.data.find import find_images, hr_folder, pair_files, unique
from eco_fast.data.images import read_image
from eco_fast.data.notes import Notes, first_names
from eco_fast.data.pixels import Image, bicubic_lr, crop_to_multiple, one_torch_thread
from eco_fast.errors import UserError

Progress = Callable[[int, int], None]  # done, total

_MAX_LOADERS = 16  # threads; each holds one decoded image and its filter's fp32 copies


@dataclass(frozen=True)
class FlatImages:
    """Images of different sizes back to back in one flat tensor: what the gather kernels read.

    Image i fills `heights[i] * widths[i] * 3` bytes of `data` from `offsets[i]` on, row by row, RGB interleaved.
    Offsets are int64 since a common training set (DF2K) has over 2^31 bytes.
    """

    data: Tensor  # uint8, 1-D
    offsets: Tensor  # int64 (N,)
    heights: Tensor  # int64 (N,)
    widths: Tensor  # int64 (N,)

    @classmethod
    def empty(cls, heights: Sequence[int], widths: Sequence[int]) -> "FlatImages":
        """Room for images of these sizes, not filled."""
        h, w = torch.tensor(heights, dtype=torch.int64), torch.tensor(widths, dtype=torch.int64)
        ends = torch.cumsum(h * w * 3, 0)
        size = int(ends[-1]) if len(ends) else 0
        return cls(torch.empty(size, dtype=torch.uint8), ends - h * w * 3, h, w)

    @classmethod
    def from_arrays(cls, arrays: list[Image], *, consume: bool = False) -> "FlatImages":
        """Copy `(H, W, 3)` uint8 arrays into one store.

        Args:
            arrays: The images.
            consume: Empty the list on the way, so that memory holds each image only once.
        """
        flat = cls.empty([a.shape[0] for a in arrays], [a.shape[1] for a in arrays])
        if consume:
            arrays.reverse()
        for i in range(len(flat)):
            flat.image(i)[:] = arrays.pop() if consume else arrays[i]
        return flat

    def __len__(self) -> int:
        return len(self.offsets)

    def image(self, i: int) -> Image:
        """Image i as a writable `(H, W, 3)` NumPy view; the store must be on the CPU."""
        offset, height, width = int(self.offsets[i]), int(self.heights[i]), int(self.widths[i])
        return self.data[offset : offset + height * width * 3].numpy().reshape(height, width, 3)

    def to(self, device: torch.device | str) -> "FlatImages":
        """The same images on another device."""
        return FlatImages(*(t.to(device) for t in (self.data, self.offsets, self.heights, self.widths)))


@dataclass(frozen=True)
class TrainingSet:
    """Everything patches are cut from: HR and centroid of the same sizes, LR and centroid LR of those / scale."""

    names: list[str]
    hr: FlatImages
    lr: FlatImages
    scale: int
    centroid: FlatImages | None = None
    centroid_lr: FlatImages | None = None
    notes: Notes = field(default_factory=Notes)

    @property
    def device(self) -> torch.device:
        """Where the images lie."""
        return self.lr.data.device

    def to(self, device: torch.device | str) -> "TrainingSet":
        """The same set on another device."""
        return replace(
            self,
            hr=self.hr.to(device),
            lr=self.lr.to(device),
            centroid=None if self.centroid is None else self.centroid.to(device),
            centroid_lr=None if self.centroid_lr is None else self.centroid_lr.to(device),
        )


def load_training_set(
    paths: Sequence[Path],
    scale: int,
    patch: int,
    *,
    lr_dir: Path | None = None,
    strict: bool = False,
    progress: Progress | None = None,
) -> TrainingSet:
    """Decode the training images and make their LR.

    HR is cropped to a multiple of the scale. LR is the exact 8-bit bicubic of the whole image, or comes from `lr_dir`.
    An image that holds no patch is left out. Both are noted.

    Args:
        paths: Folders of HR images or `.txt` lists (see `find_images`); an image named twice is taken once. Of a
            folder with `HR` and `LR*` inside, the usual layout of published sets, only `HR` is read.
        scale: 2, 3 or 4.
        patch: Side of the patches, LR pixels.
        lr_dir: The user's own LR images: NAME or NAMEx{scale} with any image extension, in it or in its X{scale}.
        strict: Make converted and left-out images an error.
        progress: Called with (done, total) after every image.

    Raises:
        UserError: Paths or images are missing or unreadable, LR does not fit HR, no image holds a patch, or, under
            `strict`, an image was converted or left out.
    """
    files = unique(file for path in paths for file in find_images(hr_folder(Path(path))))
    if not files:
        raise UserError("no training images are named; give at least one folder")
    lr_files = [None] * len(files) if lr_dir is None else pair_files(files, Path(lr_dir), scale)
    loader = _Loader(scale, patch)
    names: list[str] = []
    hrs: list[Image] = []
    lrs: list[Image] = []
    with one_torch_thread(), ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_LOADERS)) as pool:
        for done, (file, pair) in enumerate(zip(files, pool.map(loader, files, lr_files), strict=True), start=1):
            if pair is not None:
                names.append(file.name)
                hrs.append(pair[0])
                lrs.append(pair[1])
            if progress is not None:
                progress(done, len(files))
    if loader.misfits:
        raise UserError(
            f"{len(loader.misfits)} LR images in {lr_dir} do not have the size of their HR image / {scale}: "
            f"{first_names(loader.misfits)}; remake them from these HR images, or leave the LR folder out"
        )
    if not names:
        raise UserError(
            f"none of the {len(files)} training images holds a patch of {patch * scale} x {patch * scale} pixels; "
            "give larger images or a smaller data.patch"
        )
    if strict:
        loader.notes.raise_if_any()
    flat_hr, flat_lr = (FlatImages.from_arrays(images, consume=True) for images in (hrs, lrs))
    return TrainingSet(names, flat_hr, flat_lr, scale, notes=loader.notes)


def add_centroids(ts: TrainingSet, teacher: Callable[[Image], Image], progress: Progress | None = None) -> TrainingSet:
    """The set with the teacher's SR of every whole LR image, and the exact 8-bit LR of that.

    Whole images, in the image's own frame: a patch of the result has no seam at its edge, and a teacher need not
    commute with flips.

    Args:
        ts: A set on the CPU.
        teacher: `(h, w, 3)` uint8 -> `(scale h, scale w, 3)` uint8.
        progress: Called with (done, total) after every image.

    Raises:
        UserError: The teacher is for another scale.
    """
    centroid = FlatImages.empty(ts.hr.heights.tolist(), ts.hr.widths.tolist())
    centroid_lr = FlatImages.empty(ts.lr.heights.tolist(), ts.lr.widths.tolist())
    for i in range(len(ts.names)):
        lr = ts.lr.image(i)
        sr = teacher(lr)
        if sr.shape != centroid.image(i).shape:
            raise UserError(
                f"the teacher makes {_size(sr.shape)} of {_size(lr.shape)} pixels, which is not x{ts.scale}; "
                f"name a teacher for x{ts.scale}"
            )
        centroid.image(i)[:] = sr
        centroid_lr.image(i)[:] = bicubic_lr(sr, ts.scale)
        if progress is not None:
            progress(i + 1, len(ts.names))
    return replace(ts, centroid=centroid, centroid_lr=centroid_lr)


class _Loader:
    """Makes the pair of one image; called from several threads, since Pillow and PyTorch work outside the GIL."""

    def __init__(self, scale: int, patch: int) -> None:
        self.notes = Notes()
        self.misfits: list[str] = []
        self._scale, self._patch = scale, patch

    def __call__(self, file: Path, lr_file: Path | None) -> tuple[Image, Image] | None:
        """HR and LR, or None for an image that is left out."""
        scale, least = self._scale, self._patch * self._scale
        whole = read_image(file, self.notes)
        hr = crop_to_multiple(whole, scale)
        height, width = hr.shape[:2]
        own = None if lr_file is None else read_image(lr_file, self.notes)
        if own is not None and own.shape[:2] != (height // scale, width // scale):
            expected = _size((height // scale, width // scale))
            self.misfits.append(f"{file.name} ({_size(own.shape)} instead of {expected})")
            return None
        if min(height, width) < least:
            self.notes.add(f"images left out, smaller than a patch ({least} x {least})", file.name)
            return None
        if hr.shape != whole.shape:
            self.notes.add(f"images cropped to a multiple of {scale}", file.name, tolerated=True)
        return hr, bicubic_lr(hr, scale) if own is None else own


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"
