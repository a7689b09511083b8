"""The online teacher: the centroid of every patch is made while training, on the patch and some context around it.

For teachers that cannot be cached, or whose centroids no disk holds. Everything is computed in the image's own frame
and oriented last, since neither a teacher nor the 8-bit bicubic commutes with a transposition.
"""

import torch
from torch import Tensor, nn

from eco_fast.data.flat import TrainingSet
from eco_fast.data.patches import target_patches
from eco_fast.data.sampler import Plan, window
from eco_fast.eco.objective import Blend
from eco_fast.errors import UserError
from eco_fast.train.machine import Forward, compiled
from eco_fast.train.step import Batch
from eco_kernels import downsample_mix, gather_patches


class OnlineTeacher:
    """Makes batches with a network instead of stored centroids.

    A window of `patch + 2 context` LR pixels is cut around every patch and slides to lie inside the image: where it
    ends at a side of the image, that is the true border, elsewhere `context` pixels surround the patch. 2 pixels make
    the downsampled centroid exact for the window's centroid; more of them bring that closer to the whole image's.
    """

    def __init__(
        self,
        teacher: nn.Module,
        images: TrainingSet,
        patch: int,
        *,
        context: int = 2,
        precision: torch.dtype | None = None,
        rounded: bool = True,
        compile_: str = "off",
    ) -> None:
        """Nothing is computed yet.

        Args:
            teacher: Frozen; float `(B, 3, h, w)` in [0, 1] to `(B, 3, scale h, scale w)`.
            images: HR and LR on the teacher's device; every image has room for a window.
            patch: LR pixels.
            context: LR pixels on each side, 2 at least.
            precision: Of autocast; None computes in fp32.
            rounded: Clamp and round the centroid to 8 bit, as stored ones are.
            compile_: As `run.compile`, resolved.

        Raises:
            UserError: An image is smaller than a window, or the context is too small.
        """
        if context < 2:
            raise UserError(f"teacher.context is {context}; the bicubic reaches 2 LR pixels, so it must be 2 or more")
        self._teacher: Forward | None = compiled(teacher, compile_)
        self._images, self._patch, self._context = images, patch, context
        self._precision, self._rounded = precision, rounded
        self._side = patch + 2 * context
        smallest = int(torch.minimum(images.lr.heights, images.lr.widths).min())
        if smallest < self._side:
            raise UserError(
                f"the online teacher needs images of {self._side} LR pixels a side, the smallest has {smallest}; "
                "leave small images out, lower data.patch, or use --set teacher.mode=cached"
            )

    @property
    def device(self) -> torch.device:
        """Where the images lie."""
        return self._images.device

    def batch(self, plan: Plan, weights: Blend) -> Batch:
        """The patches of a plan, blended; plan and weights on the device of the images."""
        if not weights.needs_centroid and not weights.needs_centroid_lr:
            raise ValueError("this batch needs no teacher")
        images, scale = self._images, self._images.scale
        heights, widths = images.lr.heights[plan.index], images.lr.widths[plan.index]
        top, left, inner_top, inner_left = window(plan.top, plan.left, heights, widths, self._patch, self._context)
        corner = plan._replace(top=top, left=left, orientation=torch.zeros_like(top))
        lr = target_patches(images.lr, corner, self._side)
        centroid = self.centroids(lr)
        x = downsample_mix(
            centroid,
            lr,
            weights.input,
            scale,
            inner_top,
            inner_left,
            self._patch,
            plan.orientation,
            rounding="matlab" if self._rounded else "none",
        )
        return Batch(
            x=x,
            hr=target_patches(images.hr, plan, self._patch, scale) if weights.needs_hr else None,
            centroid=cut(centroid, inner_top * scale, inner_left * scale, plan.orientation, self._patch * scale)
            if weights.needs_centroid
            else None,
            alpha=weights.target,
        )

    @torch.no_grad()
    def centroids(self, lr: Tensor) -> Tensor:
        """The teacher's SR of windows, uint8 or, not rounded, fp32; `(B, 3, scale side, scale side)` channels_last."""
        if self._teacher is None:
            raise ValueError("the teacher was freed")
        x = lr.float().div_(255)
        with torch.autocast(lr.device.type, self._precision, enabled=self._precision is not None):
            sr = self._teacher(x).float()
        if self._rounded:
            sr = sr.clamp_(0, 1).mul_(255).add_(0.5).to(torch.uint8)
        return sr.contiguous(memory_format=torch.channels_last)

    def free(self) -> None:
        """Let the teacher's memory go: from here on alpha is 1."""
        self._teacher = None


def cut(images: Tensor, top: Tensor, left: Tensor, orientation: Tensor, side: int) -> Tensor:
    """An oriented square of each image of a batch: `(B, C, side, side)` of the same type, channels_last.

    Args:
        images: `(B, C, h, w)` channels_last, dense, any type.
        top, left, orientation: int64 `(B,)`.
        side: Pixels.
    """
    batch, channels, height, width = images.shape
    # Bytes are moved, whatever they mean: a pixel of fp32 is one of 4 C bytes.
    pixel = channels * images.element_size()
    number = torch.arange(batch, device=images.device)
    bytes_ = images.permute(0, 2, 3, 1).reshape(-1).view(torch.uint8)
    widths = torch.full_like(number, width)
    patches = gather_patches(
        bytes_, number * (height * width * pixel), widths, number, top, left, orientation, side, channels=pixel
    )
    return patches.view(images.dtype).permute(0, 3, 1, 2)
