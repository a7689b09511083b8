"""The kernels of a linear tail, from the weights of its convolutions; and the gradients of those.

Along one axis a pixel has up to three *kinds* of kernel parts: one that every pixel has, one that the first has
besides, and one that the last has. A shuffle makes `factor` fine pixels of a coarse one; the first of these is first on
the fine grid too if its coarse one is. Going from the last convolution to the first, each shuffle regroups the taps of
the fine grid into taps of the coarse one, dropping those that lie outside, and each convolution multiplies its kernel
to them.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product
from math import isqrt
from typing import NamedTuple

import torch
from torch import Tensor

from eco_kernels.tail import TAPS, factor_of


class Axis(NamedTuple):
    """One shuffle and the convolution before it, along one axis: constants of 0, 1 and -1.

    A *pair* is a kind of part and one of the three taps on the coarse grid; those that are 0 for all kernels are left
    out.
    """

    regroup: Tensor
    """`(pairs, factor, kinds, taps, factor)`: from the taps of a fine pixel to those of its coarse one."""
    overlap: Tensor
    """`(pairs, 3, 3, 5)`: where a tap of the convolution before meets a pair: kind and tap of the product."""
    kind: Tensor
    """`(pairs, 3)`: the kind of each pair."""
    bias: Tensor
    """`(3, factor, kinds)`: from the biases of fine pixels to those of their coarse ones."""


class Link(NamedTuple):
    """One convolution before a shuffle, with what follows it."""

    axis: Axis
    weight: Tensor
    """`(C_out, 3, 3, C_in)`: channels last."""
    bias: Tensor
    kernels: Tensor
    """Of what follows the shuffle: `(kinds, kinds, rows, columns, 3, taps, taps, C)`, for `rows x columns` pixels."""
    biases: Tensor
    """`(kinds, kinds, rows, columns, 3)`."""


def compose(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Kernels `(3, 3, 3 scale^2, 5, 5, C)` and biases `(3, 3, 3 scale^2)`, see `eco_kernels.tail.convolve`.

    Args:
        weights: Of the convolutions in their order, `(C_out, C_in, 3, 3)`: with a shuffle behind each but the last.
        biases: `(C_out,)` each.
    """
    *_, (_, kernels, bias) = _links(weights, biases)
    return kernels.flatten(2, 4), bias.flatten(2)


def compose_backward(
    of_kernels: Tensor, of_biases: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> list[Tensor]:
    """The gradients of the weights, then those of the biases, from those of the results of `compose`."""
    links = [link for link, *_ in _links(weights, biases) if link is not None]
    gradients: list[tuple[Tensor, Tensor]] = []
    scale = isqrt(of_biases.shape[-1] // 3)
    of_kernels = of_kernels.unflatten(2, (scale, scale, 3))
    of_biases = of_biases.unflatten(2, (scale, scale, 3))
    for link in reversed(links):
        of_kernels, of_biases, *own = _before_backward(link, of_kernels, of_biases)
        gradients.append((own[0], own[1]))
    gradients.append((of_kernels[0, 0, 0, 0].permute(0, 3, 1, 2), of_biases[0, 0, 0, 0]))
    return [weight for weight, _ in gradients] + [bias for _, bias in gradients]


def _links(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Iterator[tuple[Link | None, Tensor, Tensor]]:
    """From the last convolution to the first: the link, and kernels and biases from there on."""
    kernels = weights[-1].permute(0, 2, 3, 1)[None, None, None, None]
    bias = biases[-1][None, None, None, None]
    yield None, kernels, bias
    for number in reversed(range(len(weights) - 1)):
        weight = weights[number]
        factor = factor_of(weight.shape, weights[number + 1].shape)
        axis = _axis(factor, kernels.shape[-2], len(kernels), weight.device, weight.dtype)
        link = Link(axis, weight.permute(0, 2, 3, 1), biases[number], kernels, bias)
        kernels, bias = _before(link)
        yield link, kernels, bias


def _before(link: Link) -> tuple[Tensor, Tensor]:
    """Kernels and biases of the map that begins with the convolution of the link: 3 kinds, 5 taps."""
    axis, weight, bias, _, biases = link
    outer = _regrouped(link)
    products = (outer @ weight.flatten(1)).unflatten(-1, weight.shape[1:])
    half = torch.einsum("pqyxnabc,pakv->kvqyxnbc", products, axis.overlap)
    kernels = torch.einsum("kvqyxnbc,qblw->klyxnvwc", half, axis.overlap)
    own = torch.einsum("klyxn,pik,qjl->pqiyjxn", biases, axis.bias, axis.bias)
    seen = torch.einsum("pqyxn,pk,ql->klyxn", outer @ bias, axis.kind, axis.kind)
    return kernels, own.reshape(seen.shape) + seen


def _before_backward(link: Link, of_kernels: Tensor, of_biases: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the link's `kernels` and `biases`, and of its convolution's weight and bias."""
    axis, weight, bias, *_ = link
    outer = _regrouped(link)
    half = torch.einsum("klyxnvwc,qblw->kvqyxnbc", of_kernels, axis.overlap)
    of_products = torch.einsum("kvqyxnbc,pakv->pqyxnabc", half, axis.overlap).flatten(-3)
    of_seen = torch.einsum("klyxn,pk,ql->pqyxn", of_biases, axis.kind, axis.kind)
    # The product with the convolution's kernel and bias.
    rows, products = outer.flatten(0, -2), of_products.flatten(0, -2)
    of_weight = (rows.t() @ products).unflatten(-1, weight.shape[1:])
    of_bias = rows.t() @ of_seen.flatten()
    of_outer = of_products @ weight.flatten(1).t() + of_seen.unsqueeze(-1) * bias
    # Back through the shuffle.
    _, factor, *_ = axis.regroup.shape
    pairs, _, tall, wide, colours, _ = of_outer.shape
    shape = (pairs, pairs, factor, tall // factor, factor, wide // factor, colours, -1, factor, factor)
    half = torch.einsum("pqiyjxncst,qjlvt->piylxnvcs", of_outer.view(shape), axis.regroup)
    of_earlier = torch.einsum("piylxnvcs,pikus->klyxnuvc", half, axis.regroup)
    grid = of_biases.unflatten(3, (factor, -1)).unflatten(2, (factor, -1))
    of_earlier_biases = torch.einsum("pqiyjxn,pik,qjl->klyxn", grid, axis.bias, axis.bias)
    return of_earlier, of_earlier_biases, of_weight.permute(0, 3, 1, 2), of_bias


def _regrouped(link: Link) -> Tensor:
    """The kernels on the grid of the convolution, `(pairs, pairs, rows, columns, 3, C_out)`."""
    regroup = link.axis.regroup
    half = torch.einsum("klyxnuvc,pikus->piylxnvcs", link.kernels, regroup)
    outer = torch.einsum("piylxnvcs,qjlvt->pqiyjxncst", half, regroup)
    pairs, _, factor, rows, _, columns, colours, *_ = outer.shape
    return outer.reshape(pairs, pairs, factor * rows, factor * columns, colours, -1)


@cache
def _axis(factor: int, taps: int, kinds: int, device: torch.device, dtype: torch.dtype) -> Axis:
    """For fine kernels with so many `taps`, and 3 `kinds`, or 1 where edges are like all others."""
    reach = taps // 2
    regroup = torch.zeros(3, factor, 3, taps, 3, factor)  # of a first, an inner and a last pixel
    bias = torch.zeros(3, factor, 3)
    for place, sub in product(range(3), range(factor)):
        fine_place = 0 if (place, sub) == (0, 0) else 2 if (place, sub) == (2, factor - 1) else 1
        bias[place, sub, fine_place] = 1
        for tap in range(taps):
            coarse, fine = divmod(sub + tap - reach, factor)
            if coarse != place - 1 or coarse == 0:  # else it lies outside, where the inner map is 0
                regroup[place, sub, fine_place, tap, coarse + 1, fine] = 1
    # From what a pixel has in sum to the parts: inner pixels have the first part, the others one more.
    total = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 1.0]])
    parts = torch.linalg.inv(total)
    regroup = torch.einsum("kp,pifuas,fe->kaieus", parts, regroup, total)[:, :, :, :kinds]
    bias = torch.einsum("kp,pif,fe->kie", parts, bias, total)[:, :, :kinds]
    pairs = [(kind, tap) for kind, tap in product(range(3), repeat=2) if regroup[kind, tap].any()]
    overlap, kind_of = torch.zeros(len(pairs), 3, 3, TAPS), torch.zeros(len(pairs), 3)
    for number, (kind, tap) in enumerate(pairs):
        kind_of[number, kind] = 1
        for before in range(3):
            overlap[number, before, kind, tap + before] = 1
    constants = (torch.stack([regroup[pair] for pair in pairs]), overlap, kind_of, bias)
    return Axis(*(constant.to(device, dtype) for constant in constants))
