"""The operations of `eco_kernels` against what they replace, on the problem that a training step poses.

Batch 16, HR patches of 192 pixels, RGB, channels_last; 8-bit images, an fp32 network input, a bf16 network output; the
parameters of EDSR-baseline.
Before anything is timed, the contestants must agree.
"""

from collections.abc import Callable
from typing import NamedTuple

import chains
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from contest import Contest
from recorded import clock
from tail import both_ways, tail_inputs
from timing import size_of
from torch import Tensor

from eco_kernels import (
    Clip,
    Flat,
    Judgement,
    Segments,
    adam_update,
    bicubic_downsample,
    downsample_mix,
    eco_loss,
    eco_loss_with_grad,
    first_blocks,
    gather_mix,
    gather_patches,
    judge_update,
    lamb_update,
    linear_tail,
)
from eco_kernels.bicubic import REACH
from eco_kernels.dispatch import runs_kernels
from eco_kernels.update import BLOCK

Contestants = dict[str, Callable[[], Tensor]]
"""By name; `product` is what the others are compared with."""


class Problem(NamedTuple):
    """Sizes; HR sides are multiples of 12, for all scales."""

    batch: int
    patch: int  # side of an HR patch
    store: tuple[int, int, int]  # number, height and width of the HR images in memory
    image: tuple[int, int]  # height and width of the image that is downscaled as a whole
    parameters: tuple[int, ...]  # elements of a network's tensors


_EDSR = (3 * 9 * 64, 64, *(64 * 9 * 64, 64) * 33, *(64 * 9 * 256, 256) * 2, 64 * 9 * 3, 3)
USUAL = Problem(16, 192, (32, 480, 324), (1356, 2040), _EDSR)
QUICK = Problem(2, 24, (3, 48, 60), (48, 60), (1500, 64, 3))


@pytest.fixture(autouse=True)
def kernels_and_full_precision(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the kernels or nothing, and no TF32 in the convolutions that they are compared with."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    if device.type == "cuda" and not runs_kernels(torch.device("cuda")):
        pytest.skip("plain PyTorch computes on this GPU")


@pytest.fixture(scope="session")
def problem(quick: bool) -> Problem:
    return QUICK if quick else USUAL


def images(count: int, height: int, width: int, device: torch.device, seed: int = 0) -> Tensor:
    """Smooth uint8 images `(count, 3, height, width)` channels_last: like photographs they do not overshoot much."""
    generator = torch.Generator().manual_seed(seed)
    coarse = 20 + 215 * torch.rand(count, 3, height // 6 + 2, width // 6 + 2, generator=generator)
    smooth = F.interpolate(coarse, (height, width), mode="bilinear").round().to(torch.uint8)
    return smooth.to(device, memory_format=torch.channels_last)


def assert_close(result: Tensor, expected: Tensor, tolerance: float) -> None:
    """All but one value in a thousand: a tie may fall either way in another order of the same arithmetic."""
    assert result.shape == expected.shape and result.dtype == expected.dtype
    beyond = (result.double() - expected.double()).abs() > tolerance
    assert beyond.double().mean() <= 1e-3, f"{int(beyond.sum())} of {beyond.numel()} values differ"


def random_patches(batch: int, side: int, sizes: tuple[int, int, int], device: torch.device) -> chains.Patches:
    """Corners and orientations; `sizes` are number, height and width of the images."""
    generator = torch.Generator().manual_seed(1)
    count, height, width = sizes
    highs = (count, height - side + 1, width - side + 1, 8)
    draws = [torch.randint(high, (batch,), generator=generator).to(device) for high in highs]
    return chains.Patches(draws[0], draws[1], draws[2], draws[3], side)


class Stores:
    """Equal images in flat stores, as whole tensors for those who slice, and the patches to cut."""

    def __init__(self, problem: Problem, scale: int, device: torch.device) -> None:
        count, height, width = problem.store[0], problem.store[1] // scale, problem.store[2] // scale
        both = [images(count, height, width, device, seed).permute(0, 2, 3, 1) for seed in (0, 1)]
        self.flat = both[0].reshape(-1), both[1].reshape(-1)
        self.whole = [list(store.unbind()) for store in both]
        self.offsets = torch.arange(count, device=device) * (height * width * 3)
        self.widths = torch.full((count,), width, device=device)
        self.patches = random_patches(problem.batch, problem.patch // scale, (count, height, width), device)
        self.plan = list(zip(*(draw.tolist() for draw in self.patches[:4]), strict=True))

    def by_slices(self, number: int) -> Tensor:
        """The patches of a store, eagerly, as a data set of tensors would cut them."""
        return chains.slice_patches(self.whole[number], self.plan, self.patches.side)

    def by_indices(self, number: int) -> Tensor:
        """The same patches for the compiler, which would make a new graph for the slices of every batch."""
        return chains.index_patches(self.flat[number], self.offsets, self.widths, self.patches)


@pytest.mark.benchmark(group="gather_patches", timer=clock)
def test_gather_patches(contest: Contest, problem: Problem, device: torch.device) -> None:
    stores = Stores(problem, 1, device)
    store, offsets, widths = stores.flat[0], stores.offsets, stores.widths
    image, top, left, orientation, side = stores.patches
    contestants: Contestants = {
        "product": lambda: gather_patches(store, offsets, widths, image, top, left, orientation, side),
        "eager": lambda: stores.by_slices(0),
        "eager by indices": lambda: stores.by_indices(0),
    }
    contestants |= contest.compiled(contestants["eager by indices"], device)
    result = contestants["product"]()
    for call in contestants.values():
        assert torch.equal(call(), result)
    contest(f"{problem.patch} px", 2 * size_of(result), device, contestants)


@pytest.mark.benchmark(group="gather_mix", timer=clock)
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_gather_mix(contest: Contest, problem: Problem, device: torch.device, scale: int) -> None:
    stores = Stores(problem, scale, device)
    alpha = torch.tensor(0.3, device=device)
    first, second, offsets, widths = *stores.flat, stores.offsets, stores.widths
    image, top, left, orientation, side = stores.patches
    contestants: Contestants = {
        "product": lambda: gather_mix(first, second, offsets, widths, image, top, left, orientation, side, alpha),
        "eager": lambda: chains.mix_patches(stores.by_slices(0), stores.by_slices(1), alpha),
        "eager by indices": lambda: chains.mix_patches(stores.by_indices(0), stores.by_indices(1), alpha),
    }
    contestants |= contest.compiled(contestants["eager by indices"], device)
    result = contestants["product"]()
    for call in contestants.values():
        assert_close(call(), result, 1e-5)
    contest(f"x{scale}", 2 * result.numel() + size_of(result), device, contestants)


@pytest.mark.benchmark(group="bicubic_downsample", timer=clock)
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_downsample(contest: Contest, problem: Problem, device: torch.device, scale: int) -> None:
    x = images(problem.batch, problem.patch, problem.patch, device)
    tables, matrices = chains.bicubic_filter(x, scale), chains.resize_matrices(x, scale)
    contestants: Contestants = {
        "product": lambda: bicubic_downsample(x, scale),
        "eager": lambda: chains.bicubic_8_bit(x, tables, depthwise=False),
        "two matmuls": lambda: chains.two_matmuls(x, matrices),
    }
    contestants |= contest.compiled(lambda: chains.bicubic_8_bit(x, tables, depthwise=True), device)
    result = contestants["product"]()
    for call in contestants.values():
        assert_close(call(), result, 0)
    contestants["F.interpolate"] = lambda: chains.interpolate(x, scale)
    assert_close(inner(contestants["F.interpolate"]()), inner(result), 2)
    contest(f"x{scale}", size_of(x, result), device, contestants)


def inner(image: Tensor) -> Tensor:
    """An image without the pixels whose filter reaches over a side: `F.interpolate` has another border rule."""
    return image[:, :, REACH:-REACH, REACH:-REACH]


@pytest.mark.benchmark(group="bicubic_downsample", timer=clock)
def test_bicubic_downsample_of_an_image(contest: Contest, problem: Problem) -> None:
    """On the CPU always: NumPy has no other device."""
    scale, device = 4, torch.device("cpu")
    x = images(1, *problem.image, device)
    array = x[0].permute(1, 2, 0).numpy()
    result = bicubic_downsample(x, scale)
    ports: dict[str, Callable[[], np.ndarray]] = {
        "NumPy imresize": lambda: chains.imresize(array, scale),
        "NumPy imresize by rows": lambda: chains.imresize_by_rows(array, scale),
    }
    for port in ports.values():
        assert np.array_equal(port(), result[0].permute(1, 2, 0).numpy())
    assert_close(inner(chains.interpolate(x, scale)), inner(result), 2)
    contestants: dict[str, Callable[[], object]] = {
        "product": lambda: bicubic_downsample(x, scale),
        "F.interpolate": lambda: chains.interpolate(x, scale),
        **ports,
    }
    height, width = problem.image
    contest(f"{width} x {height} x{scale}", size_of(x, result), device, contestants)


@pytest.mark.benchmark(group="downsample_mix", timer=clock)
@pytest.mark.parametrize("cut", [False, True], ids=["window", "cut"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_downsample_mix(contest: Contest, problem: Problem, device: torch.device, scale: int, cut: bool) -> None:
    """The whole window; and patches of the usual size cut out of windows with context, and oriented."""
    side = problem.patch // scale
    window = side + 2 * REACH if cut else side
    centroid = images(problem.batch, window * scale, window * scale, device)
    lr = images(problem.batch, window, window, device, seed=1)
    alpha = torch.tensor(0.3, device=device)
    tables = chains.bicubic_filter(centroid, scale)
    patches = random_patches(problem.batch, side, (1, window, window), device)
    place = (patches.top, patches.left, side, patches.orientation) if cut else (None, None, None, None)
    # Numbers of this very batch, even for the compiler, which would have to look at others again.
    plan = list(zip(*(draw.tolist() for draw in patches[1:4]), strict=True)) if cut else None

    def chain(depthwise: bool) -> Tensor:
        return chains.downsample_mix_chain(centroid, lr, alpha, tables, plan, side, depthwise)

    contestants: Contestants = {
        "product": lambda: downsample_mix(centroid, lr, alpha, scale, *place),
        "eager": lambda: chain(depthwise=False),
    }
    contestants |= contest.compiled(lambda: chain(depthwise=True), device)
    result = contestants["product"]()
    for call in contestants.values():
        assert_close(call(), result, 1e-5)
    contest(f"x{scale} cut" if cut else f"x{scale}", size_of(centroid, lr, result), device, contestants)


@pytest.mark.benchmark(group="eco_loss_with_grad", timer=clock)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_eco_loss(contest: Contest, problem: Problem, device: torch.device, dtype: torch.dtype) -> None:
    """Loss and gradient; `eco_loss` is the same as an autograd operation, with its backward pass."""
    hr, centroid = (images(problem.batch, problem.patch, problem.patch, device, seed) for seed in (0, 1))
    noise = 0.1 * torch.rand(hr.shape, generator=torch.Generator().manual_seed(2)).to(device)
    output = (hr / 255 + noise).to(dtype, memory_format=torch.channels_last)
    sr = output.clone().requires_grad_()
    alpha = torch.tensor(0.3, device=device)

    def backward(loss: Tensor) -> tuple[Tensor, Tensor]:
        return loss.detach(), torch.autograd.grad(loss, sr)[0]

    contestants: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
        "product": lambda: eco_loss_with_grad(output, hr, centroid, alpha, scale_factor=255),
        "eco_loss": lambda: backward(eco_loss(sr, hr, centroid, alpha, scale_factor=255)),
        "eager": lambda: backward(chains.loss_chain(sr, hr, centroid, alpha)),
    }
    compiled = contest.compiled(lambda: chains.loss_chain(sr, hr, centroid, alpha), device)
    if compiled:
        contestants["compiled"] = lambda: backward(compiled["compiled"]())
    loss, grad = contestants["product"]()
    for call in contestants.values():
        other_loss, other_grad = call()
        torch.testing.assert_close(other_loss, loss, rtol=1e-4, atol=0)
        assert_close(other_grad, grad, 1e-2 * float(grad.abs().max()))
    name = str(dtype).removeprefix("torch.")
    contest(name, size_of(output, hr, centroid, loss, grad), device, contestants)


class Network:
    """Equal parameters and gradients twice: in flat buffers, and as tensors with an optimiser and an average."""

    def __init__(self, problem: Problem, device: torch.device) -> None:
        sizes = problem.parameters
        generator = torch.Generator().manual_seed(0)
        weights, gradients = ([torch.randn(size, generator=generator).to(device) for size in sizes] for _ in range(2))
        self.first, self.segments = first_blocks(sizes), Segments.of(sizes, device)
        weights_flat, gradients_flat = self.flattened(weights), self.flattened(gradients)
        zeros = [torch.zeros_like(weights_flat) for _ in range(2)]
        self.flat = Flat(weights_flat, gradients_flat, *zeros, average=weights_flat.clone())
        self.state, self.loss = Judgement.fresh(device), torch.ones((), device=device)
        self.parameters = [torch.nn.Parameter(weight) for weight in weights]
        self.average = [weight.clone() for weight in weights]
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient

    def flattened(self, tensors: list[Tensor]) -> Tensor:
        result = torch.zeros(self.first[-1] * BLOCK, device=tensors[0].device)
        for start, tensor in zip(self.first, tensors, strict=False):
            result[start * BLOCK : start * BLOCK + tensor.numel()] = tensor.detach()
        return result

    def judge(self) -> None:
        judge_update(self.flat.gradients, self.loss, self.state, factor=1.5, clip=CLIP)

    def eager(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """Clip, update and average as one would write it; whether the update counts is not even asked."""
        chains.update_chain(self.parameters, optimizer, self.average, CLIP.norm, SHARE)
        return self.parameters[0].detach()


CLIP, SHARE = Clip(norm=1.0), 0.01


@pytest.mark.benchmark(group="update", timer=clock)
@pytest.mark.parametrize("kind", ["adam", "lamb"])
def test_update(contest: Contest, problem: Problem, device: torch.device, kind: str) -> None:
    """Judge, clip, update and average. Every call is one more update of the contestant's own weights."""
    network, settings = Network(problem, device), {"lr": 1e-3, "betas": (0.9, 0.99), "eps": 1e-8}
    optimizer: torch.optim.Optimizer
    if kind == "adam":
        optimizer = torch.optim.Adam(network.parameters, fused=True, **settings)
    else:
        optimizer = chains.Lamb(network.parameters, **settings)

    def product() -> Tensor:
        network.judge()
        if kind == "adam":
            adam_update(network.flat, network.state, share=SHARE, clip=CLIP, **settings)
        else:
            lamb_update(network.flat, network.segments, network.state, share=SHARE, clip=CLIP, **settings)
        return network.flat.weights[: network.parameters[0].numel()]

    contestants: Contestants = {"product": product, "eager": lambda: network.eager(optimizer)}
    results = [call().clone() for call in contestants.values()]
    assert_close(*results, 1e-6)
    assert_close(network.flat.average, network.flattened(network.average), 1e-6)
    written = size_of(network.flat.weights, network.flat.mean, network.flat.square, network.flat.average)
    contest(kind, size_of(network.flat.gradients) + 2 * written, device, contestants)


@pytest.mark.benchmark(group="linear_tail", timer=clock)
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_linear_tail(contest: Contest, problem: Problem, device: torch.device, scale: int) -> None:
    """Picture and gradients, from bf16 features of 64 channels; the layers compute in bf16 too."""
    inputs = tail_inputs(problem.batch, 64, scale, problem.patch // scale, device)

    def layers(features: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
        return chains.tail_layers(features, weights, biases, torch.bfloat16, torch.bfloat16)

    contestants = {"product": both_ways(linear_tail, inputs), "eager": both_ways(layers, inputs)}
    compiled = contest.compiled(layers, device)
    if compiled:
        contestants["compiled"] = both_ways(compiled["compiled"], inputs)
    results = contestants["product"]()
    for call in contestants.values():
        for other, result in zip(call(), results, strict=True):
            assert_close(other.float(), result.float(), 0.05 * float(result.abs().max()))
    gradient_of_picture = results[0]
    contest(f"x{scale}", size_of(*inputs, *results, gradient_of_picture), device, contestants)
