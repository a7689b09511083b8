"""Images in memory, back to back in one tensor: HR, LR and the teacher's centroids."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eco_fast.data.pixels import Image

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
    def from_arrays(cls, arrays: Sequence[Image]) -> "FlatImages":
        """Copy `(H, W, 3)` uint8 arrays into one store."""
        flat = cls.empty([a.shape[0] for a in arrays], [a.shape[1] for a in arrays])
        for i, array in enumerate(arrays):
            flat.image(i)[:] = array
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

    hr: FlatImages
    lr: FlatImages
    scale: int
    centroid: FlatImages | None = None
    centroid_lr: FlatImages | None = None

    @property
    def device(self) -> torch.device:
        """Where the images lie."""
        return self.lr.data.device

    @property
    def heights(self) -> Tensor:
        """LR pixels, int64 `(N,)`."""
        return self.lr.heights

    @property
    def widths(self) -> Tensor:
        """LR pixels, int64 `(N,)`."""
        return self.lr.widths

    def by_kind(self) -> dict[str, FlatImages]:
        """What there is, by name."""
        kinds = {"hr": self.hr, "lr": self.lr, "centroid": self.centroid, "centroid_lr": self.centroid_lr}
        return {kind: images for kind, images in kinds.items() if images is not None}

    def to(self, device: torch.device | str) -> "TrainingSet":
        """The same set on another device."""
        return TrainingSet(scale=self.scale, **{kind: images.to(device) for kind, images in self.by_kind().items()})
