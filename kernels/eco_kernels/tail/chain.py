"""The kernels of a linear tail, from the weights of its convolutions; and the gradients of those.

Along one axis a pixel has up to three *kinds* of kernel parts: one that every pixel has, one that the first has
besides, and one that the last has. A shuffle makes `factor` fine pixels of a coarse one; the first of these is first on
the fine grid too if its coarse one is. Going from the last convolution to the first, every tap of the kernels behind a
shuffle is multiplied by the whole weight of the convolution before it, which reads the weight as it lies and computes
nothing twice. A product is then added wherever its tap meets an output: `Step` has the places along one axis.
"""

from collections.abc import Sequence
from functools import cache
from math import isqrt
from typing import NamedTuple

import torch
from torch import Tensor

from eco_kernels.tail import TAPS, factor_of, live_taps


class Step(NamedTuple):
    """Along one axis: which products go where, `result[kind, sub, :, first : first + 3] += sign product[tap, :, fine]`.

    The three are the taps of the convolution before the shuffle.
    """

    tap: int
    """Of the kernels behind the shuffle, among those that are not zero for all weights."""
    fine: int
    """Which of the convolution's outputs for one coarse pixel the tap meets."""
    kind: int
    sub: int
    """The fine pixel of a coarse one whose output it is."""
    first: int
    sign: int


class Axis(NamedTuple):
    """One shuffle and the convolution before it, along one axis: constants."""

    steps: tuple[Step, ...]
    kinds: Tensor
    """`(taps,)`: the kinds of the taps that are not zero."""
    places: Tensor
    """`(taps,)`: which of their kernels' taps they are."""
    seen: Tensor
    """`((kind, kind, sub, sub), (tap, tap, fine, fine))`: where a bias of the convolution before is seen; both axes."""
    own: Tensor
    """`((kind, kind, sub, sub), (kind, kind))`: from biases behind the shuffle to those of their coarse pixels."""


class Link(NamedTuple):
    """One convolution before a shuffle, with what follows it."""

    axis: Axis
    factor: int
    weight: Tensor
    """`(C_out, 3, 3, C_in)`: channels last."""
    bias: Tensor
    kernels: Tensor
    """Of what follows the shuffle: `(kinds, kinds, rows, columns, 3, taps, taps, C)`, for `rows x columns` pixels."""
    biases: Tensor
    """`(kinds, kinds, rows, columns, 3)`."""

    @property
    def taps(self) -> Tensor:
        """The kernels' taps that are not zero for all weights, `(taps, taps, rows, columns, 3, C)`."""
        return self.kernels[self.at]

    @property
    def at(self) -> tuple[Tensor | slice, ...]:
        """Where those lie."""
        kinds, places, every = self.axis.kinds, self.axis.places, slice(None)
        return kinds[:, None], kinds, every, every, every, places[:, None], places


def compose(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Kernels `(3, 3, 3 scale^2, 5, 5, C)` and biases `(3, 3, 3 scale^2)`, see `eco_kernels.tail.cpu.convolve`.

    Args:
        weights: Of the convolutions in their order, `(C_out, C_in, 3, 3)`: with a shuffle behind each but the last.
        biases: `(C_out,)` each.
    """
    kernels, bias = _before(_links(weights, biases)[-1])
    return kernels.flatten(2, 4), bias.flatten(2)


def compose_backward(
    of_kernels: Tensor, of_biases: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> list[Tensor]:
    """The gradients of the weights, channels_last, then those of the biases, from those of the results of `compose`."""
    gradients: list[tuple[Tensor, Tensor]] = []
    scale = isqrt(of_biases.shape[-1] // 3)
    of_kernels = of_kernels.unflatten(2, (scale, scale, 3))
    of_biases = of_biases.unflatten(2, (scale, scale, 3))
    for link in reversed(_links(weights, biases)):
        of_kernels, of_biases, *own = _before_backward(link, of_kernels, of_biases)
        gradients.append((own[0], own[1]))
    gradients.append((of_kernels[0, 0, 0, 0].permute(0, 3, 1, 2), of_biases[0, 0, 0, 0]))
    dense = [weight.contiguous(memory_format=torch.channels_last) for weight, _ in gradients]
    return dense + [bias for _, bias in gradients]


def _links(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[Link]:
    """From the last convolution before a shuffle to the first."""
    kernels = weights[-1].permute(0, 2, 3, 1)[None, None, None, None]
    bias = biases[-1][None, None, None, None]
    links: list[Link] = []
    for number in reversed(range(len(weights) - 1)):
        weight = weights[number]
        factor = factor_of(weight.shape, weights[number + 1].shape)
        if links:
            kernels, bias = _before(links[-1])
        axis = axis_of(factor, len(links), weight.device, weight.dtype)
        links.append(Link(axis, factor, weight.permute(0, 2, 3, 1).contiguous(), biases[number], kernels, bias))
    return links


def _before(link: Link) -> tuple[Tensor, Tensor]:
    """Kernels and biases of the map that begins with the convolution of the link: 3 kinds, 5 taps."""
    axis, factor, weight, bias, _, biases = link
    taps = link.taps
    rows, columns, colours, channels = taps.shape[2:]
    products = (taps @ weight.view(channels, -1)).unflatten(-1, (factor, factor, *weight.shape[1:]))
    # One axis, then the other.
    half = taps.new_zeros(3, len(taps), factor, rows, columns, colours, factor, TAPS, *weight.shape[2:])
    for step in axis.steps:
        target = half[step.kind, :, step.sub, ..., step.first : step.first + 3, :, :]
        target.add_(products[step.tap, ..., step.fine, :, :, :, :], alpha=step.sign)
    result = taps.new_zeros(3, 3, factor, rows, factor, columns, colours, TAPS, TAPS, weight.shape[3])
    for step in axis.steps:
        target = result[:, step.kind, :, :, step.sub, ..., step.first : step.first + 3, :]
        target.add_(half[:, step.tap, ..., step.fine, :, :, :], alpha=step.sign)
    # A bias is seen by every tap that reaches it.
    met = (taps @ bias.view(channels, -1)).flatten(2, 4).permute(0, 1, 3, 2).flatten(0, 2)
    both = torch.addmm(axis.own @ biases.reshape(axis.own.shape[1], -1), axis.seen, met)
    return result.flatten(4, 5).flatten(2, 3), _on_fine_grid(both, factor, rows, columns)


def _before_backward(link: Link, of_kernels: Tensor, of_biases: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the link's `kernels` and `biases`, and of its convolution's weight and bias."""
    axis, factor, weight, bias, kernels, biases = link
    taps = link.taps
    rows, columns, colours, channels = taps.shape[2:]
    result = of_kernels.unflatten(3, (factor, columns)).unflatten(2, (factor, rows))
    # One axis, then the other.
    half = taps.new_zeros(3, len(taps), factor, rows, columns, colours, factor, TAPS, *weight.shape[2:])
    for step in axis.steps:
        target = half[:, step.tap, ..., step.fine, :, :, :]
        target.add_(result[:, step.kind, :, :, step.sub, ..., step.first : step.first + 3, :], alpha=step.sign)
    products = taps.new_zeros(*taps.shape[:-1], factor, factor, *weight.shape[1:])
    for step in axis.steps:
        target = products[step.tap, ..., step.fine, :, :, :, :]
        target.add_(half[step.kind, :, step.sub, ..., step.first : step.first + 3, :, :], alpha=step.sign)
    # The biases, and where they are seen.
    both = _of_coarse_pixels(of_biases, factor)
    of_earlier_biases = (axis.own.t() @ both).view(biases.shape)
    met = (axis.seen.t() @ both).view(*taps.shape[:2], -1, *taps.shape[2:5]).permute(0, 1, 3, 4, 5, 2)
    # The product with the convolution's weight and bias.
    left, right, met = taps.flatten(0, -2), products.view(-1, weight.numel() // channels), met.reshape(-1, factor**2)
    of_weight, of_bias = left.t() @ right, left.t() @ met
    of_earlier = torch.zeros_like(kernels)
    of_taps = torch.addmm(met @ bias.view(channels, -1).t(), right, weight.view(channels, -1).t())
    of_earlier[link.at] = of_taps.view(taps.shape)
    return of_earlier, of_earlier_biases, of_weight.view(weight.shape).permute(0, 3, 1, 2), of_bias.flatten()


def _on_fine_grid(x: Tensor, factor: int, rows: int, columns: int) -> Tensor:
    """From `((kind, kind, sub, sub), (row, column, colour))` to `(kinds, kinds, rows, columns, 3)`."""
    wide = x.view(3, 3, factor, factor, rows, columns, -1).transpose(3, 4)
    return wide.reshape(3, 3, factor * rows, factor * columns, -1)


def _of_coarse_pixels(x: Tensor, factor: int) -> Tensor:
    """The inverse of `_on_fine_grid`."""
    return x.unflatten(3, (factor, -1)).unflatten(2, (factor, -1)).transpose(3, 4).reshape(9 * factor**2, -1)


@cache
def axis_of(factor: int, behind: int, device: torch.device, dtype: torch.dtype) -> Axis:
    """For a shuffle with so many shuffles `behind` it: with none, edges are like all others."""
    taps = live_taps(behind)
    reach = TAPS // 2 if behind else 1
    steps = []
    for number, (kind, place) in enumerate(taps):
        for sub in range(factor):
            coarse, fine = divmod(sub + place - reach, factor)
            if kind == 0:
                steps.append(Step(number, fine, 0, sub, coarse + 1, 1))
                if coarse:  # outside for the first or the last, where the inner map is zero
                    steps.append(Step(number, fine, 1 if coarse < 0 else 2, sub, coarse + 1, -1))
            elif sub == (0 if kind == 1 else factor - 1):
                steps.append(Step(number, fine, kind, sub, coarse + 1, 1))
    seen, own = torch.zeros(3, factor, len(taps), factor), torch.zeros(3, factor, 3 if behind else 1)
    for step in steps:
        seen[step.kind, step.sub, step.tap, step.fine] = step.sign
    own[0, :, 0] = 1
    if behind:
        own[1, 0, 1] = own[2, -1, 2] = 1
    return Axis(
        tuple(steps),
        *(torch.tensor(column, device=device) for column in zip(*taps, strict=True)),
        *(
            torch.einsum("kime,ljnf->klijmnef" if one is seen else "kim,ljn->klijmn", one, one)
            .reshape((9 * factor**2, -1))
            .to(device, dtype)
            for one in (seen, own)
        ),
    )
