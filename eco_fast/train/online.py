"""The online teacher: the centroid of every patch is made while training, on the patch and some context around it.

For teachers that cannot be cached, or whose centroids no disk holds. Everything is computed in the image's own frame
and oriented last, since neither a teacher nor the 8-bit bicubic commutes with a transposition.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from eco_fast.config import Config
from eco_fast.data.source import Patches
from eco_fast.errors import UserError
from eco_fast.train.compiler import compiled
from eco_fast.train.inputs import Images
from eco_fast.train.machine import AUTOCAST
from eco_kernels import downsample_mix, gather_patches
from eco_kernels.bicubic import REACH

RowsOfImages = Callable[[int, int, int, torch.device], tuple[Tensor, Tensor, Tensor]]


def online_teacher(config: Config, network: nn.Module, images: Images) -> "OnlineTeacher":
    """The teacher of a run that makes its centroids while training.

    Args:
        config: Resolved.
        network: Frozen, on its device.
        images: Of the run, with LR sizes.

    Raises:
        UserError: An image is smaller than a window, or the context is too small.
    """
    settings, patch = config.teacher, config.data.patch
    if settings.context < REACH:
        raise UserError(
            f"teacher.context is {settings.context}; the bicubic reaches {REACH} LR pixels, "
            f"so it must be {REACH} or more"
        )
    side = patch + 2 * settings.context
    smallest = int(torch.minimum(images.heights, images.widths).min())
    if smallest < side:
        raise UserError(
            f"the online teacher needs images of {side} LR pixels a side, the smallest has {smallest}; "
            "leave small images out, lower data.patch, or use --set teacher.mode=cached"
        )
    return OnlineTeacher(
        network,
        precision=AUTOCAST.get(settings.precision),
        rounded=settings.rounding == "8bit",
        compile_=config.run.compile,
    )


class OnlineTeacher:
    """Makes centroids of the windows around patches.

    A window of `patch + 2 context` LR pixels slides to lie inside its image: where it ends at a side of the image, that
    is the true border, elsewhere `context` pixels surround the patch. 2 pixels make the downsampled centroid exact for
    the window's centroid; more of them bring that closer to the whole image's.
    """

    def __init__(
        self, network: nn.Module, *, precision: torch.dtype | None = None, rounded: bool = True, compile_: str = "off"
    ) -> None:
        """Nothing is computed yet.

        Args:
            network: Frozen; float `(B, 3, h, w)` in [0, 1] to `(B, 3, scale h, scale w)`.
            precision: Of autocast; None computes in fp32.
            rounded: Clamp and round the centroid to 8 bit, as stored ones are.
            compile_: As `run.compile`, resolved.
        """
        self._forward = compiled(network, compile_)
        self._precision, self._rounded = precision, rounded
        self._rows = cache(_rows_of_images)  # the same for every batch

    def pair(self, patches: Patches, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """The student's input, and the centroids of the patches.

        Args:
            patches: With their windows.
            alpha: Weight of the real image in the input, fp32, 0-dim or `(B,)`.

        Returns:
            `alpha lr + (1 - alpha) down(centroid)`, `(B, 3, patch, patch)` fp32 in [0, 1], and the centroids
            `(B, 3, scale patch, scale patch)`, uint8 or, not rounded, fp32; both channels_last and oriented.

        Raises:
            ValueError: The patches have no windows.
        """
        if patches.window is None:
            raise ValueError("an online teacher needs windows, and these patches have none")
        plan, patch, scale = patches.plan, patches.patch, patches.scale
        centroid = self.centroids(patches.window)
        x = downsample_mix(
            centroid,
            patches.window,
            alpha,
            scale,
            plan.inner_top,
            plan.inner_left,
            patch,
            plan.orientation,
            rounding="matlab" if self._rounded else "none",
        )
        return x, cut(centroid, plan.inner_hr_top, plan.inner_hr_left, plan.orientation, patch * scale, self._rows)

    @torch.no_grad()
    def centroids(self, lr: Tensor) -> Tensor:
        """The teacher's SR of windows, uint8 or, not rounded, fp32; `(B, 3, scale side, scale side)` channels_last."""
        x = lr.float().div_(255)
        with torch.autocast(lr.device.type, self._precision, enabled=self._precision is not None):
            sr = self._forward(x).float()
        if self._rounded:
            sr = sr.clamp_(0, 1).mul_(255).add_(0.5).to(torch.uint8)
        return sr.contiguous(memory_format=torch.channels_last)


def cut(
    images: Tensor, top: Tensor, left: Tensor, orientation: Tensor, side: int, rows: RowsOfImages | None = None
) -> Tensor:
    """An oriented square of each image of a batch: `(B, C, side, side)` of the same type, channels_last.

    Args:
        images: `(B, C, h, w)` channels_last, dense, any type.
        top, left, orientation: int64 `(B,)`.
        side: Pixels.
        rows: Where images lie, remembered; None computes it.
    """
    batch, channels, height, width = images.shape
    # Bytes are moved, whatever they mean: a pixel of fp32 is one of 4 C bytes.
    pixel = channels * images.element_size()
    bytes_ = images.permute(0, 2, 3, 1).reshape(-1).view(torch.uint8)
    offsets, widths, number = (rows or _rows_of_images)(batch, height * width * pixel, width, images.device)
    patches = gather_patches(bytes_, offsets, widths, number, top, left, orientation, side, channels=pixel)
    return patches.view(images.dtype).permute(0, 3, 1, 2)


def _rows_of_images(batch: int, size: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Where the images of a batch begin, their widths, and their numbers."""
    number = torch.arange(batch, device=device)
    return number * size, torch.full_like(number, width), number
