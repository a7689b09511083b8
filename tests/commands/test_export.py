"""Weights out: what is written is read back, here and by others, to the same pictures."""

import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eco_fast import __version__
from eco_fast.cli import main
from eco_fast.commands.evaluate import evaluate_networks
from eco_fast.commands.export import basicsr_settings, basicsr_state, export, to_onnx
from eco_fast.errors import UserError
from eco_fast.models import build
from eco_fast.models.weights import identity, load_network, read_weights, save_weights

SMALL: dict[str, dict[str, Any]] = {
    "edsr-tiny": {"blocks": 2, "channels": 8, "res_scale": 0.5},
    "rcan": {"groups": 2, "blocks": 3, "channels": 32},
    "rlfn-s": {"blocks": 2, "channels": 8, "inner_channels": 8},
    "swinir-light": {"embed_dim": 12, "depths": [2], "num_heads": [2], "img_size": 16},
}


def network(name: str, scale: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build(name, scale, **SMALL[name]).eval().requires_grad_(False)


def make_run(folder: Path, name: str, scale: int = 2) -> tuple[Path, nn.Module, nn.Module]:
    """A run folder with one checkpoint, and its networks: weights and their average."""
    checkpoint = folder / "run" / "checkpoints" / "step-00000010"
    checkpoint.mkdir(parents=True)
    raw, ema = network(name, scale, 0), network(name, scale, 1)
    header = {**identity(name, SMALL[name], scale), "step": "10"}
    save_weights(checkpoint / "weights.safetensors", raw.state_dict(), header)
    save_weights(checkpoint / "ema.safetensors", ema.state_dict(), header)
    return folder / "run", raw, ema


def equal(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", ["edsr-tiny", "rcan", "rlfn-s"])
def test_safetensors_evaluate_to_the_figures_of_the_run(photos: Path, tmp_path: Path, name: str) -> None:
    run, raw, ema = make_run(tmp_path, name)
    out = export(run, "safetensors", tmp_path / "out" / "a.safetensors")
    assert read_weights(out)[1] == {**identity(name, SMALL[name], 2), "step": "10"}
    assert equal(load_network(out).state_dict(), ema.state_dict())
    theirs, ours = (found.scores["photos"].model for found in evaluate_networks([run, out], [photos]))
    assert theirs == ours
    raw_out = export(run, "safetensors", tmp_path / "raw.safetensors", raw=True)
    assert equal(load_network(raw_out).state_dict(), raw.state_dict())


def test_bare_files_get_a_header(tmp_path: Path) -> None:
    torch.save({"params": build("rlfn-ntire", 4).state_dict()}, tmp_path / "a.pth")
    out = export(tmp_path / "a.pth", "safetensors", tmp_path / "a.safetensors")
    assert read_weights(out)[1] == identity("rlfn-ntire", {}, 4)


def conv(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    weight = state.pop(f"{name}.weight")
    return F.conv2d(x, weight, state.pop(f"{name}.bias"), padding=weight.shape[-1] // 2)


def as_basicsr(state: dict[str, Tensor], settings: dict[str, Any], x: Tensor) -> Tensor:
    """What BasicSR computes with weights of its names; takes what it uses out of `state`."""
    mean = torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1)
    first = y = conv(state, "conv_first", (x - mean) * settings["img_range"])
    if settings["type"] == "EDSR":
        for i in range(settings["num_block"]):
            inner = conv(state, f"body.{i}.conv1", y).relu()
            y = y + settings["res_scale"] * conv(state, f"body.{i}.conv2", inner)
    else:
        for i in range(settings["num_group"]):
            group = y
            for j in range(settings["num_block"]):
                block = f"body.{i}.residual_group.{j}.rcab"
                z = conv(state, f"{block}.2", conv(state, f"{block}.0", y).relu())
                attention = z.mean((2, 3), keepdim=True)
                attention = conv(state, f"{block}.3.attention.1", attention).relu()
                y = y + z * conv(state, f"{block}.3.attention.3", attention).sigmoid()
            y = group + conv(state, f"body.{i}.conv", y)
    y = first + conv(state, "conv_after_body", y)
    for i, factor in enumerate({2: [2], 3: [3], 4: [2, 2]}[settings["upscale"]]):
        y = F.pixel_shuffle(conv(state, f"upsample.{2 * i}", y), factor)
    return conv(state, "conv_last", y) / settings["img_range"] + mean


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", ["edsr-tiny", "rcan"])
def test_basicsr_finds_its_names(tmp_path: Path, name: str, scale: int) -> None:
    run, raw, ema = make_run(tmp_path, name, scale)
    out = export(run, "basicsr", tmp_path / "a.pth")
    content = torch.load(out, weights_only=True)
    assert content.keys() == {"params", "params_ema", "state_dict", "metadata"}
    x = torch.rand(1, 3, 20, 14)
    for key, ours in (("params", raw), ("params_ema", ema)):
        settings = basicsr_settings(ours)
        sr = as_basicsr(content[key], settings, x)
        assert not content[key]  # there was nothing else
        torch.testing.assert_close(sr, ours(x), rtol=0, atol=1e-5)
    assert equal(content["state_dict"], ema.state_dict())
    assert settings["num_feat"] == SMALL[name]["channels"] and settings["num_block"] == SMALL[name]["blocks"]


def test_published_names_beside_those_of_basicsr_take_no_room(tmp_path: Path) -> None:
    run, _, ema = make_run(tmp_path, "rcan")
    size = export(run, "basicsr", tmp_path / "both.pth").stat().st_size
    one = export(run, "basicsr", tmp_path / "one.pth", raw=True)
    assert torch.load(one, weights_only=True).keys() == {"params", "state_dict", "metadata"}
    numbers = sum(4 * value.numel() for value in ema.state_dict().values())
    assert size - one.stat().st_size < 1.5 * numbers
    assert export(run, "basicsr", tmp_path / "half.pth", half=True).stat().st_size < 0.6 * size


def test_basicsr_has_the_colour_means_in_its_code() -> None:
    other = network("edsr-tiny", 2, 0)
    other.get_buffer("sub_mean.bias").zero_()
    with pytest.raises(UserError, match=r"sub_mean\.bias is not the published colour mean"):
        basicsr_state(other)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", ["rcan", "swinir-light"])
def test_spandrel_computes_the_same_from_basicsr_files(
    spandrel: ModuleType, tmp_path: Path, name: str, scale: int
) -> None:
    run, raw, ema = make_run(tmp_path, name, scale)
    x = torch.rand(1, 3, 24, 17)
    for given, ours in (({}, ema), ({"raw": True}, raw)):
        out = export(run, "basicsr", tmp_path / "a.pth", force=True, **given)
        theirs = spandrel.ModelLoader().load_from_file(out).eval()
        assert (theirs.architecture.id, theirs.scale) == ("RCAN" if name == "rcan" else "SwinIR", scale)
        with torch.no_grad():
            torch.testing.assert_close(theirs(x.clone()), ours(x).clamp(0, 1), rtol=0, atol=1e-5)


def test_a_network_of_spandrel_keeps_its_names(spandrel: ModuleType, tmp_path: Path) -> None:
    run, raw, ema = make_run(tmp_path, "swinir-light", 3)
    content = torch.load(export(run, "basicsr", tmp_path / "a.pth"), weights_only=True)
    assert content.keys() == {"params", "params_ema", "metadata"}
    assert equal(content["params"], raw.state_dict()) and equal(content["params_ema"], ema.state_dict())
    assert equal(load_network(tmp_path / "a.pth").state_dict(), ema.state_dict())
    out = export(tmp_path / "a.pth", "safetensors", tmp_path / "a.safetensors")
    assert equal(load_network(out).state_dict(), ema.state_dict())


def option(value: Any) -> str:
    """A dictionary in TOML's notation."""
    pairs = (f"{key}={number}" for key, number in value.items())
    return "{" + ", ".join(pairs) + "}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["edsr-tiny", "rcan", "swinir-light"])
def test_a_trained_run_comes_out_the_same(spandrel: ModuleType, photos: Path, tmp_path: Path, name: str) -> None:
    settings = [f"student.name={name}", f"student.options={option(SMALL[name])}", "data.patch=16", "data.batch=2"]
    arguments = ["train", "edsr-tiny", "--mode", "vanilla", "--train", str(photos), "--steps", "3"]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, *(part for each in settings for part in ("--set", each)), "--out", str(tmp_path / "run")])
    assert stop.value.code == 0
    ours, x = load_network(tmp_path / "run"), torch.rand(1, 3, 24, 17)
    again = load_network(export(tmp_path / "run", "safetensors", tmp_path / "a.safetensors"))
    file = export(tmp_path / "run", "basicsr", tmp_path / "a.pth")
    with torch.no_grad():
        assert torch.equal(again(x), ours(x))
        if name != "edsr-tiny":  # which the library does not know
            theirs = spandrel.ModelLoader().load_from_file(file).eval()
            torch.testing.assert_close(theirs(x.clone()), ours(x).clamp(0, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["safetensors", "basicsr"])
def test_the_header_is_written_in_full(tmp_path: Path, kind: str) -> None:
    """Also beside the weights of a pickle, where this package finds it again and others pass over it."""
    network = build("edsr-tiny", 2, **SMALL["edsr-tiny"])
    header = identity("edsr-tiny", SMALL["edsr-tiny"], 2, mode="eco", teacher=Path("/home/me/runs/rcan"))
    save_weights(tmp_path / "a.safetensors", network.state_dict(), header | {"step": "7"})
    out = tmp_path / f"b{'.pth' if kind == 'basicsr' else '.safetensors'}"
    export(tmp_path / "a.safetensors", kind, out, licence="CC-BY-4.0")
    written = read_weights(out)[1]
    assert {key: written[key] for key in ("mode", "teacher", "step", "license")} == {
        "mode": "eco",
        "teacher": "rcan",
        "step": "7",
        "license": "CC-BY-4.0",
    }
    assert (written["eco-fast"], written["torch"]) == (__version__, torch.__version__)
    assert equal(load_network(out).state_dict(), network.state_dict())  # of a size that shapes alone do not tell


def test_what_others_call_metadata_is_no_header(tmp_path: Path) -> None:
    state = build("rlfn-ntire", 4).state_dict()
    for number, theirs in enumerate(({"model": "theirs", "scale": "x"}, "text", {"eco-fast": [1]})):
        file = tmp_path / f"{number}.pth"
        torch.save({"params": state, "metadata": theirs}, file)
        assert equal(load_network(file).state_dict(), state)


@pytest.mark.parametrize("kind", ["safetensors", "basicsr"])
@pytest.mark.parametrize("name", ["edsr-tiny", "swinir-light"])
def test_half_the_size(spandrel: ModuleType, tmp_path: Path, name: str, kind: str) -> None:
    run, _, ema = make_run(tmp_path, name)
    out = tmp_path / f"a{'.pth' if kind == 'basicsr' else '.safetensors'}"
    export(run, kind, out, half=True)
    again, before = load_network(out).state_dict(), ema.state_dict()
    for key, value in before.items():
        assert again[key].dtype == value.dtype
        constant = "_mean." in key or not value.is_floating_point()
        assert torch.equal(again[key], value if constant else value.half().float()), key


@pytest.mark.parametrize("kind", ["safetensors", "basicsr"])
@pytest.mark.parametrize("name", list(SMALL))
def test_who_reads_it_is_said(
    spandrel: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    run, _, _ = make_run(tmp_path, name)
    out = export(run, kind, tmp_path / f"a{'.pth' if kind == 'basicsr' else '.safetensors'}")
    said = capsys.readouterr().out
    try:
        spandrel.ModelLoader().load_from_file(out)
    except spandrel.UnsupportedModelError:
        assert re.search(r"do not know (EDSR|RLFN); for chaiNNer export --format onnx\n$", said)
    else:
        assert said.endswith("spandrel reads it, and so does chaiNNer\n")


def check_onnx(file: Path, ours: nn.Module, *, half: bool = False) -> None:
    session: Any = importlib.import_module("onnxruntime").InferenceSession(file)
    lr, sr = session.get_inputs()[0], session.get_outputs()[0]
    assert (lr.type, sr.type) == ("tensor(float)", "tensor(float)")
    assert lr.shape == ["batch", 3, "height", "width"]
    assert sr.shape == ["batch", 3, f"{ours.scale}*height", f"{ours.scale}*width"]
    for shape in [(1, 3, 24, 24), (3, 3, 17, 40)]:
        x = torch.rand(shape)
        (sr,) = session.run(["sr"], {"lr": x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(sr), ours(x), rtol=0, atol=1 / 255 if half else 1e-5)


@pytest.fixture
def onnx() -> None:
    """The test is skipped where a package of the extra `onnx` is not installed."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["edsr-tiny", "rcan", "rlfn-s"])
def test_onnxruntime_computes_the_same_at_any_size(
    onnx: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    run, raw, ema = make_run(tmp_path, name, 3)
    check_onnx(export(run, "onnx", tmp_path / "a.onnx"), ema)
    captured = capsys.readouterr()
    assert captured.err == "" and "onnxruntime and PyTorch differ by at most" in captured.out
    if name == "edsr-tiny":
        check_onnx(export(run, "onnx", tmp_path / "raw.onnx", raw=True), raw)
        halved = export(run, "onnx", tmp_path / "half.onnx", half=True, licence="MIT")
        check_onnx(halved, ema, half=True)
        model = importlib.import_module("onnx").load(halved)
        header = {entry.key: entry.value for entry in model.metadata_props}
        assert (header["model"], header["step"], header["license"]) == (name, "10", "MIT")
        kinds = {tensor.data_type for tensor in model.graph.initializer}
        assert importlib.import_module("onnx").TensorProto.FLOAT not in kinds


@pytest.mark.full
def test_onnxruntime_computes_a_network_of_spandrel(onnx: None, spandrel: ModuleType, tmp_path: Path) -> None:
    run, _, ema = make_run(tmp_path, "swinir-light")
    check_onnx(export(run, "onnx", tmp_path / "a.onnx"), ema)


class SizeIsConstant(nn.Module):
    """Computes with a number that tracing takes for a constant."""

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, h, w) -> the same shape."""
        return x + torch.tensor(float(self.columns(x)))

    @staticmethod
    @torch.compiler.assume_constant_result
    def columns(x: Tensor) -> int:
        return x.shape[-1]


class Unknown(nn.Module):
    """Has a shape that depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, h, w) -> something else."""
        return x[x > x.mean()] if x.mean() > 0 else x


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "message"), [(SizeIsConstant(), "would differ from PyTorch by"), (Unknown(), "cannot express")]
)
def test_a_network_that_onnx_gets_wrong_is_refused(
    onnx: None, capfd: pytest.CaptureFixture[str], wrong: nn.Module, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        to_onnx(wrong, {})
    assert len(str(caught.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = network("edsr-tiny", 2, 0)

    def missing(name: str, *_: Any) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"No module named 'onnx'\); pip install onnx onnxscript onnxruntime"):
        to_onnx(tiny, {})


@pytest.mark.parametrize(("kind", "end"), [("safetensors", "safetensors"), ("basicsr", "pth")])
def test_files_are_replaced_with_force_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str, end: str
) -> None:
    run, _, _ = make_run(tmp_path, "edsr-tiny", 3)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    arguments = ["export", str(run), "--format", kind]
    for more, code in (([], 0), ([], 2), (["--force"], 0)):
        with pytest.raises(SystemExit) as stop:
            main([*arguments, *more])
        assert stop.value.code == code
    printed = capsys.readouterr()
    assert f"ema.safetensors -> edsr-tiny-x3.{end}" in printed.out
    assert printed.err == (
        f"error: edsr-tiny-x3.{end} is there already; replace it with --force or name another file with --out\n"
    )
    assert [path.name for path in (tmp_path / "here").iterdir()] == [f"edsr-tiny-x3.{end}"]
    if kind == "basicsr":
        assert "network_g of BasicSR: {type: EDSR, num_in_ch: 3, num_out_ch: 3, num_feat: 8, upscale: 3" in printed.out


def test_bad_input_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _, _ = make_run(tmp_path, "edsr-tiny")
    with pytest.raises(UserError, match="unknown format 'tflite'; take one of safetensors, basicsr, onnx"):
        export(run, "tflite")
    with pytest.raises(UserError, match=r"a\.bin does not end in \.pth, as basicsr files do; rename it"):
        export(run, "basicsr", tmp_path / "a.bin")
    with pytest.raises(UserError, match=r"--raw chooses among the weights of a run, and .* leave it out"):
        export(run / "checkpoints" / "step-00000010" / "ema.safetensors", "basicsr", raw=True)
    with pytest.raises(UserError, match="no weights file"):
        export(tmp_path / "nothing", "safetensors")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*a\.pth: "):
        export(run, "basicsr", tmp_path / "file" / "a.pth")
    assert not list(tmp_path.glob("**/*.tmp"))


def test_basicsr_files_of_this_package_load_again(tmp_path: Path) -> None:
    """Their `state_dict` has the published names as well as BasicSR's."""
    torch.manual_seed(0)
    network = build("rcan", 2, **SMALL["rcan"])
    save_weights(tmp_path / "a.safetensors", network.state_dict(), identity("rcan", SMALL["rcan"], 2))
    state = read_weights(export(tmp_path / "a.safetensors", "basicsr", tmp_path / "a.pth"))[0]
    assert state.keys() >= network.state_dict().keys() - {
        "sub_mean.weight",
        "sub_mean.bias",
        "add_mean.weight",
        "add_mean.bias",
    }
