"""The operations of `eco_kernels` on a device against float64 references, for every specialisation of a kernel."""

import argparse
import json
from collections.abc import Callable, Iterator
from itertools import cycle, product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eco_fast.models.layers import FACTORS
from eco_fast.proof.outcome import Evidence, NotRun
from eco_fast.proof.stage import Stage
from eco_kernels import (
    Clip,
    Flat,
    Judgement,
    Segments,
    adam_update,
    bicubic_downsample,
    downsample_mix,
    eco_loss_with_grad,
    first_blocks,
    gather_mix,
    gather_patches,
    judge_update,
    lamb_update,
    linear_tail,
    reference,
)
from eco_kernels.dispatch import runs_kernels
from eco_kernels.loss import CHARBONNIER_EPS
from eco_kernels.update import BLOCK

SCALES = (2, 3, 4)
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
KINDS = ("l1", "l2", "charbonnier")
ABSOLUTE = 3e-7  # of values in [0, 1]: a few roundings of fp32

_ROUNDED = 255 * 2e-7  # error of a difference on the 0-255 scale

Check = Callable[[torch.device], float]  # runs on a device; the largest error in units of what is allowed


class Case(NamedTuple):
    """One call, and the specialisations of kernels that it makes."""

    name: str
    covers: frozenset[str]
    check: Check


def of_training(stage: Stage) -> Evidence:
    """The kernels that training launches by default, and batches of its size."""
    from eco_kernels.offline import DEFAULTS

    device = torch.device(stage.device)
    kernels_must_run(device)
    return parity(device, frozenset(DEFAULTS) | {"training batch"})


def all_of_them(stage: Stage) -> Evidence:
    """Every specialisation; on a CPU the same operations in plain PyTorch."""
    device = torch.device(stage.device)
    if device.type == "cuda":
        kernels_must_run(device)
    return parity(device)


def parity(device: torch.device, wanted: frozenset[str] | None = None) -> Evidence:
    """Run the cases and compare.

    Args:
        device: Where the operations run; the references are computed on the CPU.
        wanted: Only cases all of whose specialisations are among these.
    """
    faults, worst, worst_name, compared = [], 0.0, "", 0
    for case in cases():
        if wanted is not None and not case.covers <= wanted:
            continue
        error = case.check(device)
        compared += 1
        if not error <= 1.0:
            faults.append(f"{case.name}: {error:.3g} times the allowed error")
        if error >= worst:
            worst, worst_name = error, case.name
    detail = f"{compared} calls; largest error {worst:.2g} of what is allowed ({worst_name})"
    return Evidence(compared, tuple(faults), detail if compared else "no case was chosen")


def coverage(known: frozenset[str]) -> Evidence:
    """Whether the cases call every specialisation in `known`."""
    covered = frozenset().union(*(case.covers for case in cases()))
    missing = tuple(f"{name} is called by no case" for name in sorted(known - covered))
    return Evidence(len(known & covered), missing, f"{len(known)} specialisations")


def kernels_must_run(device: torch.device) -> None:
    """Refuse to test anything but the kernels.

    Raises:
        NotRun: On this device plain PyTorch computes.
    """
    if not runs_kernels(device):
        raise NotRun(f"plain PyTorch computes on {device}: the kernels need a GPU of compute capability 8.0 or more")


def cases() -> Iterator[Case]:
    """All launches of kernels, in the order of the operations."""
    yield from _gathers()
    yield from _bicubics()
    yield from _mixes()
    yield from _losses()
    yield from _judgements()
    yield from _updates()
    yield from _tails()
    yield from _training_batches()


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.").lower()


def _random(shape: tuple[int, ...], dtype: torch.dtype, seed: int, layout: str = "nchw") -> Tensor:
    """Images with saturated parts, which make the filter overshoot."""
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(shape, generator=generator) * 1.5 - 0.25).clamp(0, 1)
    x = (x * 255).round().to(dtype) if dtype == torch.uint8 else x.to(dtype)
    return x.contiguous(memory_format=LAYOUTS[layout])


def _error(result: Tensor, expected: Tensor, absolute: float | Tensor = ABSOLUTE) -> float:
    """Largest error over what is allowed: one rounding to the result's type, and `absolute`. Exact for uint8."""
    result = result.cpu()
    if result.shape != expected.shape:
        return float("inf")
    if result.dtype == torch.uint8:
        return 0.0 if torch.equal(result, expected) else float("inf")
    relative = torch.finfo(result.dtype).eps / 2
    error = (result.double() - expected.double()).abs() / (expected.double().abs() * relative + absolute)
    return float("inf") if error.isnan().any() else error.max().item()


def _gathers() -> Iterator[Case]:
    sizes, patch, batch = ((40, 62), (80, 48), (46, 46)), 37, 9
    lengths = torch.tensor([h * w * 3 for h, w in sizes])
    generator = torch.Generator().manual_seed(0)
    stores = torch.randint(0, 256, (2, int(lengths.sum())), generator=generator, dtype=torch.uint8)
    offsets, index = lengths.cumsum(0) - lengths, torch.arange(batch) % 3
    corners = [(k // 3 % 2 * (sizes[k % 3][0] - patch), k // 2 % 2 * (sizes[k % 3][1] - patch)) for k in range(batch)]
    top, left = torch.tensor(corners).unbind(1)
    alpha = torch.rand(batch, generator=generator)
    for widths_type, dtype in product((torch.int64, torch.int32), (torch.uint8, *FLOATS)):
        place: dict[str, Any] = {
            "offsets": offsets,
            "widths": torch.tensor([w for _, w in sizes], dtype=widths_type),
            "index": index,
            "top": top,
            "left": left,
            "orientation": torch.arange(batch) % 8,
        }
        mixed = dtype != torch.uint8

        def check(
            device: torch.device, place: dict[str, Any] = place, dtype: torch.dtype = dtype, mixed: bool = mixed
        ) -> float:
            there = {name: each.to(device) for name, each in place.items()}
            first, second = (store.to(device) for store in stores)
            if not mixed:
                result = gather_patches(first, **there, patch=patch)
                return _error(result, reference.gather_patches(stores[0], **place, patch=patch))
            result = gather_mix(first, second, **there, patch=patch, alpha=alpha.to(device), dtype=dtype)
            return _error(result, reference.gather_mix(stores[0], stores[1], **place, patch=patch, alpha=alpha))

        kind = "gather-mix" if mixed else "gather"
        name = f"{kind}-{_name(dtype)}-i{8 * widths_type.itemsize}"
        yield Case(name, frozenset({name}), check)


def _bicubics() -> Iterator[Case]:
    for scale, dtype, layout, rounding in product(SCALES, (torch.uint8, *FLOATS), LAYOUTS, ("matlab", "none")):
        if dtype == torch.uint8 and rounding == "none":
            continue
        x = _random((2, 3, 19 * scale, 32 * scale), dtype, scale, layout)

        def check(device: torch.device, x: Tensor = x, scale: int = scale, rounding: str = rounding) -> float:
            result = bicubic_downsample(x.to(device), scale, rounding=rounding)
            return _error(result, reference.bicubic_downsample(x, scale, rounding=rounding))

        name = f"x{scale}-{_name(dtype)}-{layout}-{rounding}"
        yield Case(f"bicubic {name}", frozenset({f"vertical-{name}", f"horizontal-{name}"}), check)


def _mixes() -> Iterator[Case]:
    """Every first pass and every second pass, in as few calls as there are second passes."""
    for scale, layout, rounding in product(SCALES, LAYOUTS, ("matlab", "none")):
        centroids = cycle((torch.uint8, torch.bfloat16, torch.float32, torch.float16))
        for real, result in product((torch.uint8, torch.float32), FLOATS):
            yield _mix(scale, layout, rounding, next(centroids), real, result)


def _mix(
    scale: int,
    layout: str,
    rounding: str,
    centroid_type: torch.dtype,
    real: torch.dtype,
    result_type: torch.dtype,
    *,
    batch: int = 5,
    size: tuple[int, int] = (23, 32),
    patch: int = 17,
    mark: frozenset[str] = frozenset(),
) -> Case:
    centroid = _random((batch, 3, size[0] * scale, size[1] * scale), centroid_type, 1, layout)
    lr = _random((batch, 3, *size), real, 2, layout)
    generator = torch.Generator().manual_seed(3)
    alpha = torch.rand(batch, generator=generator)
    options: dict[str, Any] = {
        "top": torch.arange(batch) % (size[0] - patch + 1),
        "left": torch.arange(batch) % (size[1] - patch + 1),
        "orientation": torch.arange(batch) * 3 % 8,
    }

    def check(device: torch.device) -> float:
        there = {name: value.to(device) for name, value in options.items()}
        result = downsample_mix(
            centroid.to(device), lr.to(device), alpha.to(device), scale, **there,
            patch=patch, rounding=rounding, dtype=result_type,
        )  # fmt: skip
        return _error(
            result, reference.downsample_mix(centroid, lr, alpha, scale, **options, patch=patch, rounding=rounding)
        )

    first = f"vertical-patch-x{scale}-{_name(centroid_type)}-{layout}-{rounding}"
    second = f"horizontal-mix-x{scale}-{_name(real)}-{_name(result_type)}-{layout}-{rounding}"
    return Case(f"mix {first}, {second}", frozenset({first, second}) | mark, check)


def _losses() -> Iterator[Case]:
    targets = (torch.uint8, torch.bfloat16, torch.float32, None)
    for kind, dtype, hr_type, centroid_type in product(KINDS, FLOATS, targets, targets):
        if hr_type is not None or centroid_type is not None:
            yield _loss(kind, dtype, hr_type, centroid_type)
        if hr_type == centroid_type == torch.uint8:
            yield _loss(kind, dtype, hr_type, centroid_type, tensor=True)


def _loss(
    kind: str,
    dtype: torch.dtype,
    hr_type: torch.dtype | None,
    centroid_type: torch.dtype | None,
    *,
    tensor: bool = False,
    shape: tuple[int, ...] = (3, 3, 48, 32),
    mark: frozenset[str] = frozenset(),
) -> Case:
    """`tensor`: the factor lies on the device, as in graphs of PyTorch."""
    sr = _random(shape, dtype, 1, "channels_last")
    hr, centroid = (
        None if each is None else _random(shape, each, seed, "channels_last")
        for seed, each in ((2, hr_type), (3, centroid_type))
    )
    alpha = torch.tensor(0.3) if hr is not None and centroid is not None else None
    arguments = (sr, hr, centroid, alpha)

    def check(device: torch.device) -> float:
        there = [None if each is None else each.to(device) for each in arguments]
        factor = torch.full((), 255.0, device=device) if tensor else 255.0
        loss, grad = eco_loss_with_grad(*there, kind=kind, scale_factor=factor)  # type: ignore[arg-type]
        expected, slope = reference.eco_loss_with_grad(*arguments, kind=kind, scale_factor=255.0)
        _, unscaled = reference.eco_loss_with_grad(*arguments, kind="l2")
        difference = unscaled.abs() * sr.numel() / 2
        apart = (difference > ABSOLUTE) | (kind != "l1")  # l1 jumps where they are equal
        room = 255 / sr.numel() * (_steepness(kind, 255 * difference) * _ROUNDED + 3e-7)
        error = _error(grad.cpu()[apart], slope[apart], room[apart])
        return max(error, abs(loss.item() - expected.item()) / (1e-6 * expected.item()))

    name = "-".join((kind, *map(_name, (dtype, hr_type, centroid_type)))) + "-tensor" * tensor
    return Case(f"loss {name}", frozenset({name}) | mark, check)


def _steepness(kind: str, difference: Tensor) -> Tensor:
    """How much a loss's slope changes with the scaled difference, at most, within its rounding."""
    if kind == "charbonnier":
        least = (difference - _ROUNDED).clamp(min=0)
        return CHARBONNIER_EPS**2 / (least**2 + CHARBONNIER_EPS**2) ** 1.5
    return torch.full_like(difference, 2.0 if kind == "l2" else 0.0)


def _judgements() -> Iterator[Case]:
    """Gradients that count, whose norm is clipped, and then some that are not finite."""
    for scale in (None, 1024.0):

        def check(device: torch.device, scale: float | None = scale) -> float:
            gradients, loss, clip = (scale or 1.0) * _flat().gradients, torch.tensor(0.7), Clip(0.5, 1.0)
            expected, result = (Judgement.fresh(each, last=1.0, scale=scale) for each in ("cpu", device))
            worst = 0.0
            for _ in range(2):
                expected = reference.judge_update(gradients, loss, expected, factor=1.5, clip=clip)
                judge_update(gradients.to(device), loss.to(device), result, factor=1.5, clip=clip)
                for name, ours, truth in zip(result._fields, result, expected, strict=True):
                    if ours is not None and truth is not None and not (name == "clip_factor" and expected.skip):
                        worst = max(worst, _relative(ours, truth))
                gradients[-1] = float("nan")
            return worst

        name = "-scaled" if scale else ""
        yield Case(f"judge{name}", frozenset({f"norms{name}", f"judge{name}"}), check)


def _relative(result: Tensor, expected: Tensor) -> float:
    """Largest error over a few roundings; what is not finite has to be the same in both."""
    ours, truth = result.cpu().double(), expected.double()
    same = (ours == truth) | (ours.isnan() & truth.isnan())
    error = torch.where(same, 0.0, (ours - truth).abs() / (1e-6 * truth.abs()))
    return float("inf") if error.isnan().any() else error.max().item()


def _updates() -> Iterator[Case]:
    """All kinds of copies, and learning rates on the host and on the device."""
    for kind, average, low, tensor in product(
        ("adam", "lamb"), (True, False), (None, torch.bfloat16, torch.float16), (False, True)
    ):
        if not tensor or average == (low is not None):
            yield _update(kind, average, low, tensor)


def _update(kind: str, average: bool, low_type: torch.dtype | None, tensor: bool) -> Case:
    sizes, options = (1500, 1, 3000), {"weight_decay": 0.02, "clip": Clip(0.5, 1.0)}
    before = _flat(sizes)
    before = before._replace(
        average=before.mean.clone() if average else None,
        low=None if low_type is None else before.weights.to(low_type),
    )

    def check(device: torch.device) -> float:
        result = before.map(lambda each: each.to(device).clone())
        state, expected_state = (_verdict(each) for each in (device, torch.device("cpu")))
        scalars = [torch.full((), each, device=device) if tensor else each for each in (1e-2, 0.2)]
        settings: dict[str, Any] = {"lr": scalars[0], "share": scalars[1], **options}
        if kind == "lamb":
            lamb_update(result, Segments.of(sizes, device), state, **settings)
            expected = reference.lamb_update(before, Segments.of(sizes), expected_state, **settings)
        else:
            adam_update(result, state, **settings)
            expected = reference.adam_update(before, expected_state, **settings)
        # The gradients are the operation's own; a low copy is that of the new weights, rounded once.
        errors = [
            _error(ours, truth) if name != "low" else 0.0 if torch.equal(ours, result.weights.to(ours.dtype)) else 2.0
            for name, ours, truth in zip(result._fields, result, expected, strict=True)
            if ours is not None and truth is not None and name != "gradients"
        ]
        return max(errors)

    low = _name(low_type)
    name = f"{kind}-{'average' if average else 'alone'}-{low}" + "-tensor" * tensor
    others = ("lamb-moments", "lamb-ratios") if kind == "lamb" else ()
    return Case(f"update {name}", frozenset({name, *others}), check)


def _flat(sizes: tuple[int, ...] = (1500, 1, 3000)) -> Flat:
    """Buffers of a small network, with zeros in the gaps. Moments are those of some updates: no step is large."""
    generator = torch.Generator().manual_seed(0)
    length = first_blocks(sizes)[-1] * BLOCK
    present = torch.zeros(length, dtype=torch.bool)
    for start, size in zip(first_blocks(sizes), sizes, strict=False):
        present[start * BLOCK : start * BLOCK + size] = True
    draws = [torch.where(present, torch.randn(length, generator=generator), 0.0) for _ in range(3)]
    return Flat(0.1 * draws[0], draws[1], 0.1 * draws[2], torch.where(present, 1.0, 0.0))


def _verdict(device: torch.device) -> Judgement:
    """That of the tenth update, which counts."""
    state = Judgement.fresh(device)
    state.steps.fill_(10)
    state.clip_factor.fill_(0.75)
    return state


def _tails() -> Iterator[Case]:
    """Picture and gradients of the networks' widths; more pixels than a program takes, and several slices of them."""
    for channels, scale, dtype in product((32, 64, 256), SCALES, FLOATS):
        generator = torch.Generator().manual_seed(0)
        outputs = [*(factor**2 * channels for factor in FACTORS[scale]), 3]
        weights = [torch.randn(out, channels, 3, 3, generator=generator) / (3 * channels**0.5) for out in outputs]
        biases = [torch.randn(out, generator=generator) for out in outputs]
        batch, height, width = 1 if channels == 256 else 3, 14, 13
        features = torch.randn(batch, height, width, channels, generator=generator).to(dtype).permute(0, 3, 1, 2)
        grad = torch.randn(batch, 3, scale * height, scale * width, generator=generator)

        def check(
            device: torch.device,
            features: Tensor = features,
            weights: list[Tensor] = weights,
            biases: list[Tensor] = biases,
            grad: Tensor = grad,
        ) -> float:
            def results(function: Callable[..., Tensor], convert: Callable[[Tensor], Tensor]) -> list[Tensor]:
                inputs = [convert(each).requires_grad_() for each in (features, *weights, *biases)]
                picture = function(inputs[0], inputs[1 : len(weights) + 1], inputs[len(weights) + 1 :])
                gradients = torch.autograd.grad(picture, inputs, convert(grad).to(picture.dtype))
                return [picture.detach(), *gradients]

            found = results(linear_tail, lambda x: x.detach().to(device))
            expected = results(reference.linear_tail, Tensor.double)
            return max(map(_norm_error, found, expected))

        name = f"{channels}-x{scale}-{_name(dtype)}"
        covers = {*(f"tail-{of}-{name}" for of in ("picture", "features", "kernels")), f"tail-sum-{channels}-x{scale}"}
        links = ("x4", "x4-first") if scale == 4 else (f"x{scale}",)
        covers |= {f"link-{of}-{channels}-{link}" for of in ("gather", "spread") for link in links}
        covers |= {f"link-{of}-{channels}-x{FACTORS[scale][0]}" for of in ("products", "weights", "taps")}
        yield Case(f"tail {name}", frozenset(covers), check)


def _norm_error(result: Tensor, expected: Tensor) -> float:
    """Distance over what is allowed of sums whose terms cancel: 1e-5 of all, and one rounding to the result's type."""
    allowed = 1e-5 + (0 if result.dtype == torch.float32 else torch.finfo(result.dtype).eps / 2)
    return ((result.cpu().double() - expected).norm() / expected.norm() / allowed).item()


def _training_batches() -> Iterator[Case]:
    """The usual types at the size of training: batch 16, HR patches of 192 pixels."""
    mark = frozenset({"training batch"})
    for dtype in (torch.float32, torch.bfloat16):
        yield _loss("l1", dtype, torch.uint8, torch.uint8, shape=(16, 3, 192, 192), mark=mark)
    for scale in SCALES:
        side = 192 // scale
        yield _mix(
            scale, "channels_last", "matlab", torch.uint8, torch.uint8, torch.float32,
            batch=16, size=(side + 4, side + 4), patch=side, mark=mark,
        )  # fmt: skip


def main() -> None:
    """Compute the cases of some specialisations on the CPU and print the result as JSON, in a process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="+")
    device = torch.device("cpu")
    kernels_must_run(device)
    evidence = parity(device, frozenset(parser.parse_args().names))
    print(json.dumps({"compared": evidence.compared, "faults": evidence.faults, "detail": evidence.detail}))


if __name__ == "__main__":
    main()
