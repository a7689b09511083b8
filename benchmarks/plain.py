"""The yardstick: ECO training written in plain PyTorch from the paper's formulas, as one would without this project.

Images lie decoded in memory, the centroids are given. Every sample is cut, flipped and turned by slicing, converted to
float, blended; the network is the usual channels-first EDSR under autocast; the loss goes through autograd.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from chains import Patches, blend, index_patches
from torch import Tensor, nn


class PlainEdsr(nn.Module):
    """EDSR with the same parameters as `edsr-tiny`, nothing tuned."""

    def __init__(self, scale: int, blocks: int = 8, channels: int = 32) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
            )
            for _ in range(blocks)
        )
        self.body_end = nn.Conv2d(channels, channels, 3, padding=1)
        factors = {2: [2], 3: [3], 4: [2, 2]}[scale]
        self.up = nn.Sequential(
            *(
                layer
                for factor in factors
                for layer in (nn.Conv2d(channels, factor**2 * channels, 3, padding=1), nn.PixelShuffle(factor))
            )
        )
        self.tail = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, h, w) in [0, 1] -> (B, 3, scale h, scale w)."""
        features = self.head(x * 255.0 - 110.0)
        y = features
        for block in self.blocks:
            y = y + block(y)
        return (self.tail(self.up(features + self.body_end(y))) + 110.0) / 255.0


class PlainTrainer:
    """ECO on lists of whole uint8 images: (hr, lr, centroid, centroid_lr), each (H, W, 3)."""

    def __init__(
        self,
        images: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]],
        scale: int,
        *,
        patch: int,
        batch: int,
        lr: float,
        bf16: bool,
        device: str = "cpu",
        **network: int,
    ) -> None:
        self.images = [tuple(torch.from_numpy(np.ascontiguousarray(image)) for image in four) for four in images]
        self.scale, self.patch, self.batch, self.bf16, self.device = scale, patch, batch, bf16, device
        self.network = PlainEdsr(scale, **network).to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=lr, betas=(0.9, 0.99))
        self.rng = np.random.default_rng(0)

    def step(self, alpha: float) -> float:
        """One update with alpha as the weight of the real pair; returns the loss."""
        hr, lr, centroid, centroid_lr = (
            torch.stack(images).to(self.device) for images in zip(*map(self._sample, range(self.batch)), strict=True)
        )
        x = alpha * lr + (1 - alpha) * centroid_lr
        y = alpha * hr + (1 - alpha) * centroid
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            sr = self.network(x)
        loss = 255.0 * F.l1_loss(sr.float(), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def _sample(self, _: int) -> list[Tensor]:
        four = self.images[self.rng.integers(len(self.images))]
        top, left = (self.rng.integers(side - self.patch + 1) for side in four[1].shape[:2])
        flips = [axis for axis in (0, 1) if self.rng.integers(2)]
        transpose = self.rng.integers(2)
        patches = []
        for image, scale in zip(four, (self.scale, 1, self.scale, 1), strict=True):
            side = self.patch * scale
            patch = image[top * scale : top * scale + side, left * scale : left * scale + side].flip(flips)
            patch = patch.transpose(0, 1) if transpose else patch
            patches.append(patch.permute(2, 0, 1).float() / 255.0)
        return patches


class TunedTrainer:
    """`PlainTrainer` tuned with what PyTorch itself offers: the yardstick for a GPU, which never waits for its host.

    All images lie on the device, patches are drawn and cut there by indices; channels_last, fused Adam, the loss is not
    read; forward pass, loss and blend are compiled together, on a GPU with its graphs (`reduce-overhead`).
    """

    def __init__(
        self,
        images: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]],
        scale: int,
        *,
        patch: int,
        batch: int,
        lr: float,
        device: str,
        bf16: bool,
        compile_: bool,
        **network: int,
    ) -> None:
        self.scale, self.patch, self.batch, self.device, self.bf16 = scale, patch, batch, device, bf16
        kinds = [torch.from_numpy(np.stack(images)) for images in zip(*images, strict=True)]
        self.heights, self.widths = kinds[1].shape[1:3]  # of LR; all images have one size
        self.stores = [store.reshape(-1).to(device) for store in kinds]
        count = len(images)
        self.count = count
        self.tables = [
            (torch.arange(count, device=device) * store[0].numel(), torch.full((count,), store.shape[2], device=device))
            for store in kinds
        ]
        self.network = PlainEdsr(scale, **network).to(device).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=lr, betas=(0.9, 0.99), fused=True)
        self.loss: Callable[..., Tensor] = self._loss
        if compile_:
            for tensor in (*self.stores, *(tensor for table in self.tables for tensor in table)):
                torch._dynamo.mark_static_address(tensor)  # else PyTorch's graphs copy all images in every step
            mode = "reduce-overhead" if device == "cuda" else "default"
            self.loss = torch.compile(self._loss, mode=mode, dynamic=False)

    def step(self, alpha: Tensor) -> Tensor:
        """One update with alpha, 0-dim on the device, as the weight of the real pair; the loss, not read."""
        if self.device == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        loss = self.loss(*self._draw(), alpha)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    def _draw(self) -> tuple[Tensor, ...]:
        highs = (self.count, self.heights - self.patch + 1, self.widths - self.patch + 1, 8)
        return tuple(torch.randint(high, (self.batch,), device=self.device) for high in highs)

    def _loss(self, image: Tensor, top: Tensor, left: Tensor, orientation: Tensor, alpha: Tensor) -> Tensor:
        hr, lr, centroid, centroid_lr = (
            index_patches(store, *table, Patches(image, top * scale, left * scale, orientation, self.patch * scale))
            for store, table, scale in zip(self.stores, self.tables, (self.scale, 1, self.scale, 1), strict=True)
        )
        x = blend(lr, centroid_lr, alpha).permute(0, 3, 1, 2)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            sr = self.network(x)
        return 255.0 * F.l1_loss(sr.float(), blend(hr, centroid, alpha).permute(0, 3, 1, 2))
