"""The networks: published names, sizes and results."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eco_fast.errors import UserError
from eco_fast.models import build, names
from eco_fast.models.weights import load_network

SMALL = {"edsr-tiny": {}, "rlfn-s": {}, "rcan": {"groups": 2, "blocks": 2, "channels": 16}}


State = dict[str, torch.Tensor]


class Published:
    """A state dict with the names and shapes of the EDSR-PyTorch and RCAN files, random values in the convolutions."""

    def __init__(self, scale: int, channels: int) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.channels = channels
        self.state: State = {}
        for name, sign in (("sub_mean", -1), ("add_mean", 1)):
            self.state[f"{name}.weight"] = torch.eye(3).view(3, 3, 1, 1)
            self.state[f"{name}.bias"] = sign * 255 * torch.tensor([0.4488, 0.4371, 0.4040])
        self.add("head.0", channels, 3)
        for position in {2: (0,), 3: (0,), 4: (0, 2)}[scale]:
            self.add(f"tail.0.{position}", channels * (9 if scale == 3 else 4), channels)
        self.add("tail.1", 3, channels)

    def add(self, name: str, outputs: int, inputs: int, size: int = 3) -> None:
        weight = torch.randn(outputs, inputs, size, size, generator=self.generator)
        self.state[f"{name}.weight"] = weight / (inputs * size * size) ** 0.5
        self.state[f"{name}.bias"] = 0.1 * torch.randn(outputs, generator=self.generator)


def published_edsr(scale: int, blocks: int, channels: int) -> State:
    published = Published(scale, channels)
    for block in range(blocks):
        published.add(f"body.{block}.body.0", channels, channels)
        published.add(f"body.{block}.body.2", channels, channels)
    published.add(f"body.{blocks}", channels, channels)
    return published.state


def published_rcan(scale: int, groups: int, blocks: int, channels: int) -> State:
    published = Published(scale, channels)
    for group in range(groups):
        for block in range(blocks):
            inside = f"body.{group}.body.{block}.body"
            published.add(f"{inside}.0", channels, channels)
            published.add(f"{inside}.2", channels, channels)
            published.add(f"{inside}.3.conv_du.0", channels // 16, channels, size=1)
            published.add(f"{inside}.3.conv_du.2", channels, channels // 16, size=1)
        published.add(f"body.{group}.body.{blocks}", channels, channels)
    published.add(f"body.{groups}", channels, channels)
    return published.state


@pytest.mark.parametrize(
    ("name", "scale", "expected"),
    [
        ("edsr", 2, 40_729_603),
        ("edsr", 3, 43_680_003),
        ("edsr", 4, 43_089_923),
        ("edsr-baseline", 2, 1_369_859),
        ("edsr-baseline", 3, 1_554_499),
        ("edsr-baseline", 4, 1_517_571),
        ("rcan", 2, 15_444_643),
        ("rcan", 3, 15_629_283),
        ("rcan", 4, 15_592_355),
        ("rlfn", 2, 526_856),
        ("rlfn", 4, 543_740),
        ("rlfn-s", 2, 454_620),
        ("rlfn-s", 4, 470_208),
        ("rlfn-ntire", 4, 317_218),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, scale: int, expected: int) -> None:
    with torch.device("meta"):
        network = build(name, scale)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected
    constants = 0 if name.startswith("rlfn") else 24  # two mean shifts of 9 weights and 3 biases
    assert sum(value.numel() for value in network.state_dict().values()) == expected + constants


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("edsr", lambda scale: published_edsr(scale, 32, 256)),
        ("edsr-baseline", lambda scale: published_edsr(scale, 16, 64)),
        ("rcan", lambda scale: published_rcan(scale, 10, 20, 64)),
    ],
)
def test_names_and_shapes_are_the_published_ones(name: str, published: Callable[[int], State], scale: int) -> None:
    with torch.device("meta"):
        ours = build(name, scale).state_dict()
        wanted = {key: value.shape for key, value in published(scale).items()}
    assert {key: value.shape for key, value in ours.items()} == wanted


def convolution(state: State, features: torch.Tensor, name: str) -> torch.Tensor:
    weight, bias = state[f"{name}.weight"].double(), state[f"{name}.bias"].double()
    return torch.nn.functional.conv2d(features, weight, bias, padding=weight.shape[-1] // 2)


def upsampled(state: State, features: torch.Tensor) -> torch.Tensor:
    """The tail of x4, in float64."""
    for layer in ("tail.0.0", "tail.0.2"):
        features = torch.nn.functional.pixel_shuffle(convolution(state, features, layer), 2)
    return convolution(state, convolution(state, features, "tail.1"), "add_mean") / 255


def test_edsr_computes_what_its_published_parts_say() -> None:
    state = published_edsr(4, blocks=2, channels=8)
    network = build("edsr-tiny", 4, blocks=2, channels=8, res_scale=0.1)
    network.load_state_dict(state, strict=True)
    x = torch.rand(1, 3, 7, 9, generator=torch.Generator().manual_seed(1))
    head = features = convolution(state, convolution(state, 255 * x.double(), "sub_mean"), "head.0")
    for block in range(2):
        inner = convolution(state, features, f"body.{block}.body.0").relu()
        features = features + 0.1 * convolution(state, inner, f"body.{block}.body.2")
    features = convolution(state, features, "body.2") + head
    torch.testing.assert_close(network(x).double(), upsampled(state, features), rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_rcan_computes_what_its_published_parts_say(layout: torch.memory_format) -> None:
    state = published_rcan(4, groups=2, blocks=3, channels=32)
    network = build("rcan", 4, groups=2, blocks=3, channels=32)
    network.load_state_dict(state, strict=True)
    x = torch.rand(2, 3, 7, 9, generator=torch.Generator().manual_seed(1))
    head = features = convolution(state, convolution(state, 255 * x.double(), "sub_mean"), "head.0")
    for group in range(2):
        start = features
        for block in range(3):
            name = f"body.{group}.body.{block}.body"
            inner = convolution(state, convolution(state, features, f"{name}.0").relu(), f"{name}.2")
            means = inner.mean((2, 3), keepdim=True)
            gate = convolution(state, convolution(state, means, f"{name}.3.conv_du.0").relu(), f"{name}.3.conv_du.2")
            features = features + inner * gate.sigmoid()
        features = start + convolution(state, features, f"body.{group}.body.3")
    features = head + convolution(state, features, "body.2")
    network = network.to(memory_format=layout)
    with torch.no_grad():
        sr = network(x.contiguous(memory_format=layout))
    torch.testing.assert_close(sr.double(), upsampled(state, features), rtol=1e-6, atol=5e-6)


def test_the_mean_is_no_parameter_and_follows_the_file() -> None:
    network = build("edsr-tiny", 2, blocks=1, channels=4)
    assert not any("mean" in name for name, _ in network.named_parameters())
    state = network.state_dict() | {"add_mean.bias": torch.full((3,), 51.0)}
    before = network(torch.zeros(1, 3, 4, 4))
    shift = torch.tensor(51.0) - network.get_buffer("add_mean.bias")
    network.load_state_dict(state)
    after = network(torch.zeros(1, 3, 4, 4))
    torch.testing.assert_close(after - before, (shift / 255).view(1, 3, 1, 1).expand_as(after))


def test_another_colour_transform_is_refused() -> None:
    network = build("edsr-tiny", 2)
    state = network.state_dict() | {"sub_mean.weight": 2 * torch.eye(3).view(3, 3, 1, 1)}
    with pytest.raises(RuntimeError, match=r"sub_mean\.weight is not the identity"):
        network.load_state_dict(state)


@pytest.mark.parametrize("name", ["edsr-tiny", "edsr-baseline", "rlfn", "rlfn-s", "rlfn-ntire", "rcan"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_output_size_for_a_small_patch(name: str, scale: int) -> None:
    network = build(name, scale, **SMALL.get(name, {}))
    assert network.scale == scale
    with torch.no_grad():
        assert network(torch.rand(1, 3, 24, 26)).shape == (1, 3, 24 * scale, 26 * scale)


def test_rlfn_names_its_smallest_image() -> None:
    network = build("rlfn-ntire", 2)
    assert network(torch.rand(1, 3, 15, 15)).shape == (1, 3, 30, 30)
    with pytest.raises(ValueError, match="at least 15 x 15"):
        network(torch.rand(1, 3, 14, 40))


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_autocast_keeps_a_float32_tail_and_channels_last(name: str) -> None:
    torch.manual_seed(0)
    network = build(name, 2, **SMALL[name]).to(memory_format=torch.channels_last)
    tail_inputs: list[torch.Tensor] = []
    tail = network.get_submodule("upsampler.0" if name == "rlfn-s" else "tail")
    tail.register_forward_pre_hook(lambda module, inputs: tail_inputs.extend(inputs))
    x = torch.rand(2, 3, 24, 24).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = network(x)
    assert y.dtype == torch.float32
    assert tail_inputs[0].dtype == torch.bfloat16  # the body did run in bfloat16
    assert tail_inputs[0].is_contiguous(memory_format=torch.channels_last)
    assert y.is_contiguous(memory_format=torch.channels_last)
    # 8 bits are not enough for the output: float32 values are not all multiples of bfloat16's step.
    assert not torch.equal(y, y.bfloat16().float())
    y.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in network.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_equal_seeds_give_equal_networks_and_outputs(name: str) -> None:
    x = torch.rand(2, 3, 24, 24)
    outputs = []
    for _ in range(2):
        torch.manual_seed(3)
        outputs.append(build(name, 2, **SMALL[name])(x))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("name", SMALL)
def test_copies_and_traces_without_graph_breaks(name: str) -> None:
    network = copy.deepcopy(build(name, 2, **SMALL[name]))
    x = torch.rand(1, 3, 24, 24)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), network(x))


def test_build_says_what_is_wrong() -> None:
    assert {"edsr", "edsr-baseline", "edsr-tiny", "rcan", "rlfn", "rlfn-s", "rlfn-ntire"} <= set(names())
    with pytest.raises(UserError, match="unknown network 'edrs'; there are edsr"):
        build("edrs", 2)
    with pytest.raises(UserError, match="no scale 5; take one of 2, 3, 4"):
        build("edsr", 5)
    with pytest.raises(UserError, match="no option 'width'; it has blocks, channels, res_scale"):
        build("edsr", 2, width=3)
    with pytest.raises(UserError, match="no option 'res_scale'; it has groups, blocks, channels"):
        build("rcan", 2, res_scale=0.1)
    for wrong in ({"blocks": 0}, {"channels": "64"}, {"blocks": True}, {"blocks": 1.5}, {"res_scale": "big"}):
        with pytest.raises(UserError, match="must be a"):
            build("edsr-tiny", 2, **wrong)
    assert build("edsr-tiny", 2, res_scale=1) is not None


def luma(image: np.ndarray) -> np.ndarray:
    return 16 + image.astype(np.float64) / 255 @ np.array([65.481, 128.553, 24.966])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "name", "scale", "expected"),
    [
        ("rlfn_x2", "rlfn", 2, 38.07),
        ("rlfn_x4", "rlfn", 4, 32.24),
        ("rlfn_s_x2", "rlfn-s", 2, 38.05),
        ("rlfn_s_x4", "rlfn-s", 4, 32.24),
        ("rlfn_ntire_x4", "rlfn-ntire", 4, 32.10),
    ],
)
def test_published_weights_reach_their_figures(
    testdata: Path, file: str, name: str, scale: int, expected: float
) -> None:
    network = load_network(testdata / "weights" / "RLFN" / f"{file}.pth", name, scale)
    figures = []
    for path in sorted((testdata / "Set5" / "HR").glob("*.png")):
        lr = np.array(Image.open(testdata / f"Set5/LR_bicubic/X{scale}/{path.stem}x{scale}.png").convert("RGB"))
        hr = np.array(Image.open(path).convert("RGB"))[: lr.shape[0] * scale, : lr.shape[1] * scale]
        with torch.no_grad():
            sr = network(torch.from_numpy(lr).permute(2, 0, 1)[None] / 255)[0]
        picture = (255 * sr.clamp(0, 1) + 0.5).floor().permute(1, 2, 0).numpy()
        error = (luma(picture) - luma(hr))[scale:-scale, scale:-scale]
        figures.append(10 * np.log10(255**2 / np.mean(error**2)))
    assert np.mean(figures) == pytest.approx(expected, abs=0.01)
