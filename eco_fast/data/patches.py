"""The patches of a plan, cut from stores that lie on the device."""

from torch import Tensor

from eco_fast.data.flat import FlatImages, TrainingSet
from eco_fast.data.sampler import Plan
from eco_kernels import gather_mix, gather_patches


def target_patches(images: FlatImages | None, plan: Plan, patch: int, scale: int = 1) -> Tensor:
    """Cut and orient patches, HR ones for `scale` > 1.

    Args:
        images: The store, on the device the patches are wanted on.
        plan: On that device. Corners in LR pixels; an HR patch begins at `scale` times these.
        patch: Side in LR pixels.
        scale: Pixels of the store per LR pixel, along a side.

    Returns:
        `(B, 3, scale patch, scale patch)` uint8 in channels_last layout: what lies in the store, permuted, not copied.

    Raises:
        ValueError: `images` is None: the set has no centroids.
    """
    if images is None:
        raise ValueError("the training set has no centroids")
    cut = gather_patches(
        images.data,
        images.offsets,
        images.widths,
        plan.index,
        plan.top * scale,
        plan.left * scale,
        plan.orientation,
        patch * scale,
    )
    return cut.permute(0, 3, 1, 2)


def input_patches(
    ts: TrainingSet, plan: Plan, patch: int, alpha: Tensor, needs_lr: bool = True, needs_centroid_lr: bool = True
) -> Tensor:
    """The student's input, `alpha * lr + (1 - alpha) * centroid_lr`, from the store in one go.

    Args:
        ts: The set, on the device the patches are wanted on.
        plan: On that device. Corners in LR pixels.
        patch: Side in LR pixels.
        alpha: Weight of the real image, fp32, 0-dim or `(B,)`.
        needs_lr: False where every weight of the real image is 0: it is not read.
        needs_centroid_lr: False where every weight of the centroid is 0: it is not read, and need not exist.

    Returns:
        `(B, 3, patch, patch)` fp32 in [0, 1], channels_last.

    Raises:
        ValueError: A centroid is needed and the set has none, or nothing is needed.
    """
    if needs_centroid_lr and ts.centroid_lr is None:
        raise ValueError("the training set has no centroids")
    pair = ((ts.lr, needs_lr), (ts.centroid_lr, needs_centroid_lr))
    used = [images for images, needed in pair if needed and images is not None]
    if not used:
        raise ValueError("an input needs LR, centroid LR or both")
    # A lone store stands in for its partner, whose weight is 0: one code path, hence the same bits on both sides of a
    # phase change.
    real, centroid = used[0], used[-1]
    return gather_mix(
        real.data,
        centroid.data,
        real.offsets,
        real.widths,
        plan.index,
        plan.top,
        plan.left,
        plan.orientation,
        patch,
        alpha,
    )
