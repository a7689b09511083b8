"""What `run.compile=auto` means, and what is compiled."""

import warnings
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._dynamo.utils import counters

from eco_fast.config import load_config
from eco_fast.errors import UserError
from eco_fast.models import build
from eco_fast.train import machine
from eco_fast.train.compiler import compiled, repeated_blocks
from eco_fast.train.machine import resolve_compile
from eco_fast.train.start import train


@pytest.mark.parametrize(("device", "expected"), [("cuda", "default"), ("cpu", "off")])
def test_auto(device: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "missing_tool", lambda: None)
    assert resolve_compile("auto", device) == expected
    assert resolve_compile("max-autotune", device) == "max-autotune"
    assert resolve_compile("off", device) == "off"


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert resolve_compile("auto", "cuda") == resolve_compile("off", "cuda") == "off"
    with pytest.raises(UserError, match=r"run\.compile=default needs a C\+\+ compiler \(no-such-compiler\)"):
        resolve_compile("default", "cuda")


def test_without_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": "/nowhere"})
    assert "headers" in str(machine.missing_tool())


@pytest.mark.parametrize(
    ("name", "block", "count"),
    [("rcan", "AttentionBlock", 200), ("edsr", "ResidualBlock", 32), ("edsr-baseline", "", 0), ("rlfn", "", 0)],
)
def test_the_blocks_of_a_network(name: str, block: str, count: int) -> None:
    """The outermost ones of which there are many, neither their parts nor the groups that they are in."""
    with torch.device("meta"):
        blocks = list(repeated_blocks(build(name, 2)))
    assert Counter(type(each).__name__ for each in blocks) == ({block: count} if count else {})


class Shift(nn.Module):
    """What differs from one to the next is a number, which compiled code would hold."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number
        self.one, self.two = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x)) + self.number


def test_blocks_are_equal_in_all_that_compiled_code_holds() -> None:
    assert len(list(repeated_blocks(nn.Sequential(*(Shift(1.0) for _ in range(20)))))) == 20
    assert not list(repeated_blocks(nn.Sequential(*(Shift(float(i)) for i in range(20)))))
    assert not list(repeated_blocks(nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 1)) for _ in range(20)))))
    lists = nn.ModuleList(
        nn.ModuleList([nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1)]) for _ in range(20)
    )  # which nobody calls
    assert not list(repeated_blocks(nn.Sequential(lists)))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are made as for training, and run as they are."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch.compiler.reset()
    counters.clear()


def graphs() -> int:
    assert not counters["graph_break"]
    return int(counters["stats"]["unique_graphs"])


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("precision", [torch.bfloat16, None])
def test_one_block_is_compiled_for_all(precision: torch.dtype | None) -> None:
    """More of them than the compiler would compile again; each computes with weights of its own, those of now."""
    torch.manual_seed(0)
    network = build("rcan", 2, groups=2, blocks=10, channels=4)
    forward = compiled(network, "default")
    x, parameters = torch.rand(1, 3, 8, 8), list(network.parameters())
    names = list(network.state_dict())
    for _ in range(3):
        answers = []
        for call in (forward, network):
            with torch.autocast("cpu", precision, enabled=precision is not None):
                sr = call(x)
            answers.append([sr, *torch.autograd.grad(sr, parameters, torch.ones_like(sr))])
        for ours, theirs in zip(*answers, strict=True):
            assert (ours - theirs).norm() <= (1e-5 if precision is None else 2e-2) * theirs.norm() + 1e-6
        with torch.no_grad():
            for parameter in parameters:
                parameter.mul_(1.01)
    assert graphs() == 1
    network.eval()(torch.rand(1, 3, 9, 11))  # as validation does
    assert graphs() == 1
    assert list(network.state_dict()) == names
    assert not any("forward" in vars(module) for module in network.modules())


@pytest.mark.usefixtures("quick")
def test_a_run_of_many_blocks(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One compilation, whatever is validated; the weights that one without a compiler ends with."""
    settings = {
        "mode": "vanilla",
        "student.name": "rcan",
        "student.options": {"groups": 2, "blocks": 9, "channels": 4},
        "data.train": [str(photos)],
        "data.valid": str(photos),
        "data.patch": 8,
        "data.batch": 2,
        "run.steps": 4,
        "run.valid_every": 2,
        "run.device": "cpu",
        "run.precision": "bf16",
    }
    ended, said = [], []
    for choice in ("default", "off"):
        flags = {**settings, "run.compile": choice, "run.out": tmp_path / choice}
        weights = load_file(train(load_config("edsr-tiny", flags=flags)).checkpoint / "weights.safetensors")
        ended.append(torch.cat([tensor.flatten() for tensor in weights.values()]))
        said.append(capsys.readouterr().out)
    assert (ended[0] - ended[1]).norm() <= 1e-2 * ended[1].norm()
    assert graphs() == 1
    assert ["compiling the network; the first steps take a while\n" in each for each in said] == [True, False]


@pytest.mark.usefixtures("quick")
def test_few_blocks_are_compiled_together() -> None:
    network = build("edsr-tiny", 2, blocks=2, channels=4)
    x = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(compiled(network, "default")(x), network(x))
    assert graphs() == 1 and counters["stats"]["calls_captured"] > 10
    assert compiled(network, "off") is network


def test_advice_about_tf32_is_not_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run has its precision; other warnings of the compiler are heard."""
    from torch._inductor import compile_fx

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    with warnings.catch_warnings(record=True) as heard:
        warnings.resetwarnings()
        compile_fx._warn_tf32_disabled.__wrapped__()
        assert len(heard) == 1
        compiled(nn.Conv2d(3, 3, 1), "default")
        compile_fx._warn_tf32_disabled.__wrapped__()
        warnings.warn_explicit("Something else", UserWarning, "compile_fx.py", 1, "torch._inductor.compile_fx")
        warnings.warn_explicit(str(heard[0].message), UserWarning, "other.py", 1, "other")
        assert [str(each.message)[:10] for each in heard[1:]] == ["Something ", "TensorFloa"]
