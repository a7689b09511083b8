"""The kernels of the tail against the float64 truth and the plain form, in Triton's interpreter."""

from itertools import product

import pytest
import torch
import triton.language as tl
from torch import Tensor

from eco_kernels import linear_tail, reference
from eco_kernels.dispatch import runs_kernels
from eco_kernels.tail import chain, chain_kernel, cpu, kernel

FACTORS = {2: (2,), 3: (3,), 4: (2, 2)}


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks for small problems: a step of the interpreter takes milliseconds, and more where most of it is masked."""
    for name, size in {"ROWS": 512, "COLUMNS": 512, "STEP": 64, "NARROW_ROWS": 512, "PART_STEP": 128}.items():
        monkeypatch.setattr(chain_kernel, name, tl.constexpr(size))
    for name, size in {"PIXELS": 32, "BIAS_PIXELS": 16, "COLUMNS": 256, "SUM_VALUES": 4096}.items():
        monkeypatch.setattr(kernel, name, tl.constexpr(size))
    monkeypatch.setattr(chain_kernel, "PLACES", 1024)
    monkeypatch.setattr(kernel, "STEP_OUTPUTS", 64)
    monkeypatch.setattr(kernel, "_feature_block", lambda scale, dtype: 16)


def problem(channels: int, scale: int, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """Features, weights, biases; `shape` is batch, height, width."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(factor**2 * channels, channels) for factor in FACTORS[scale]] + [(3, channels)]
    weights = [torch.randn(*size, 3, 3, generator=generator) / (3 * channels**0.5) for size in sizes]
    biases = [torch.randn(outputs, generator=generator) for outputs, _ in sizes]
    features = torch.randn(shape[0], channels, *shape[1:], generator=generator).to(dtype)
    return [features.contiguous(memory_format=torch.channels_last), *weights, *biases]


def relative_error(result: Tensor, expected: Tensor) -> float:
    return ((result.detach().double() - expected).norm() / expected.norm()).item()


def test_the_kernels_are_what_is_tested() -> None:
    assert runs_kernels(torch.device("cpu"))


@pytest.mark.parametrize(
    ("channels", "scale", "shape", "dtype"),
    [
        (5, 2, (2, 3, 3), torch.float32),
        (8, 3, (1, 3, 7), torch.bfloat16),
        (5, 4, (1, 4, 3), torch.float16),
        pytest.param(16, 4, (1, 8, 7), torch.bfloat16, marks=pytest.mark.full),
        pytest.param(40, 3, (2, 5, 4), torch.float32, marks=pytest.mark.full),
        pytest.param(40, 2, (1, 3, 6), torch.bfloat16, marks=pytest.mark.full),
        pytest.param(16, 2, (2, 6, 3), torch.float16, marks=pytest.mark.full),
    ],
)
def test_picture_and_gradients(channels, scale, shape, dtype, fences, few_steps) -> None:
    """Sides so small that the kernels of both edges meet, and others."""
    features, *others = problem(channels, scale, shape, dtype)
    inputs = [tensor.requires_grad_() for tensor in (fences.copy(features), *others)]
    weights, biases = inputs[1 : 1 + len(others) // 2], inputs[1 + len(others) // 2 :]
    picture, expected = linear_tail(inputs[0], weights, biases), reference.linear_tail(inputs[0], weights, biases)
    assert picture.dtype == torch.float32 and picture.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(picture, expected) < 1e-5
    torch.testing.assert_close(picture.double(), expected, rtol=1e-5, atol=3e-5)
    grad = torch.randn(picture.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad(picture, inputs, grad)
    truth = [tensor.detach().double().requires_grad_() for tensor in inputs]
    wanted = torch.autograd.grad(
        reference.linear_tail(truth[0], truth[1 : len(weights) + 1], truth[len(weights) + 1 :]), truth, grad.double()
    )
    for ours, exact, tensor in zip(found, wanted, inputs, strict=True):
        assert ours.dtype == tensor.dtype
        # A gradient of the features is rounded to their type; that of the others has its error from the sums.
        rounding = torch.finfo(tensor.dtype).eps / 2
        assert relative_error(ours, exact) < max(1e-5, rounding)
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5 + rounding, atol=3e-5 * float(exact.abs().max()))


@pytest.mark.parametrize(
    ("channels", "factors"),
    [
        ((5, 7), (2,)),
        ((6, 5), (3,)),
        ((3, 6, 5), (2, 2)),
        pytest.param((4, 3, 5), (2, 3), marks=pytest.mark.full),
        pytest.param((3, 2, 2, 2), (2, 2, 2), marks=pytest.mark.full),
        pytest.param((70, 40), (2,), marks=pytest.mark.full),
    ],
)
def test_composition(channels, factors, fences, few_steps) -> None:
    """Kernels from weights, and their gradients, against the plain form in float64."""
    compared(channels, factors)


def test_composition_by_many_programs(fences, monkeypatch) -> None:
    """Products in blocks as on a GPU, several of rows, columns and terms; and the same bits once more."""
    monkeypatch.setattr(chain_kernel, "PLACES", 512)
    once, again = compared((18, 33), (2,)), compared((18, 33), (2,))
    assert all(map(torch.equal, once, again))


def compared(channels: tuple[int, ...], factors: tuple[int, ...]) -> list[Tensor]:
    """What the kernels give, after comparison; weights lie as a network's do, or anyhow."""
    generator = torch.Generator().manual_seed(0)
    outputs = [*(factor**2 * after for factor, after in zip(factors, channels[1:], strict=True)), 3]
    weights = [
        torch.randn(out, into, 3, 3, generator=generator) / (3 * into**0.5)
        for out, into in zip(outputs, channels, strict=True)
    ]
    weights[0] = weights[0].contiguous(memory_format=torch.channels_last)
    biases = [torch.randn(out, generator=generator) for out in outputs]
    exact = [weight.double() for weight in weights], [bias.double() for bias in biases]
    found, expected = chain_kernel.compose(weights, biases), chain.compose(*exact)
    grads = [torch.randn(each.shape, generator=generator) for each in expected]
    gradients = chain_kernel.compose_backward(grads[0], grads[1], weights, biases)
    truth = chain.compose_backward(grads[0].double(), grads[1].double(), *exact)
    for ours, wanted in zip((*found, *gradients), (*expected, *truth), strict=True):
        assert ours.dtype == torch.float32 and ours.shape == wanted.shape
        assert relative_error(ours, wanted) < 1e-6
    assert all(each.is_contiguous() for each in (*found, *gradients[len(weights) :]))
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in gradients[: len(weights)])
    return [*found, *gradients]


def test_more_pixels_than_a_tile_and_a_slice(fences, few_steps) -> None:
    """Kernels that are products of nothing, in the same order in every run."""
    generator = torch.Generator().manual_seed(0)
    batch, channels, height, width, scale = 1, 5, 11, 10, 2
    features = torch.randn(batch, channels, height, width, generator=generator).bfloat16()
    met = torch.zeros(
        3, 3, 1, 5, 5, 1
    )  # at the edges the others are zero for any weights, and plain PyTorch skips them
    for y, x in product(range(3), repeat=2):
        met[y, x, :, cpu.Edge.of(scale).taps[y], cpu.Edge.of(scale).taps[x]] = 1
    kernels = met * 1e-4 * torch.randn(3, 3, 3 * scale**2, 5, 5, channels, generator=generator)
    biases = 1e-4 * torch.randn(3, 3, 3 * scale**2, generator=generator)
    grad = torch.randn(batch, 3, height * scale, width * scale, generator=generator)

    def results(of: object) -> list[Tensor]:
        picture = of.convolve(features, kernels, biases, scale)  # type: ignore[attr-defined]
        gradients = of.convolve_backward(grad, features, kernels, scale)  # type: ignore[attr-defined]
        return [picture, gradients[0], gradients[1] * met, gradients[2]]

    found = results(kernel)
    for ours, plain in zip(found, results(cpu), strict=True):
        assert (ours.dtype, ours.shape) == (plain.dtype, plain.shape)
        assert ours.ndim != 4 or ours.is_contiguous(memory_format=torch.channels_last)
        assert relative_error(ours, plain.double()) < (1e-3 if ours.dtype == torch.bfloat16 else 1e-5)
    again = kernel._kernel_gradient(kernel._dense(grad), kernel._dense(features), scale)
    assert torch.equal(found[2], again[0] * met) and torch.equal(found[3], again[1])


def test_what_32_bits_do_not_count_is_refused() -> None:
    features = torch.zeros(()).expand(1, 1, 2**16, 2**15)
    with pytest.raises(ValueError, match=r"\(1, 1, 65536, 32768\) are too large"):
        kernel.convolve(features, torch.zeros(3, 3, 12, 5, 5, 1), torch.zeros(3, 3, 12), 2)
