"""Networks of the library spandrel: as students by name, as teachers by file."""

import copy
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from eco_fast.commands.evaluate import evaluate_networks
from eco_fast.errors import UserError
from eco_fast.models import build, spandrel_networks
from eco_fast.models.weights import identity, load_into, load_matching, load_network, save_weights

SMALL: dict[str, dict[str, Any]] = {
    "swinir-light": {"embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2], "img_size": 16},
    "spandrel:CRAFT": {"embed_dim": 12, "depths": [1], "num_heads": [2]},  # takes 16 x 16 and more
    "spandrel:RCAN": {"n_resgroups": 1, "n_resblocks": 1, "n_feats": 16},  # writes into its input
}


def small(name: str, scale: int = 2) -> spandrel_networks.SpandrelNetwork:
    torch.manual_seed(0)
    network = build(name, scale, **SMALL[name])
    assert isinstance(network, spandrel_networks.SpandrelNetwork)
    return network.eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "scale", "expected"),
    [
        ("swinir-light", 2, 910_152),
        ("swinir-light", 3, 918_267),
        ("swinir-light", 4, 929_628),
        ("swinir", 4, 11_900_199),
    ],
)
def test_parameter_counts(spandrel: ModuleType, name: str, scale: int, expected: int) -> None:
    network = build(name, scale)
    assert network.scale == scale
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(16, 16), (19, 37), (5, 48), (1, 1)])
def test_any_size_gives_what_the_library_gives(spandrel: ModuleType, name: str, size: tuple[int, int]) -> None:
    network = small(name)
    x = torch.rand(1, 3, *size)
    kept = x.clone()
    with torch.no_grad():
        sr = network(x)
    assert torch.equal(x, kept)
    assert sr.shape == (1, 3, 2 * size[0], 2 * size[1]) and sr.dtype == torch.float32
    theirs = spandrel.MAIN_REGISTRY.load(network.state_dict()).eval()
    pads_itself = name == "spandrel:CRAFT" and min(size) >= 16
    with torch.no_grad():
        expected = theirs.model(kept.clone()) if pads_itself else theirs(kept.clone())
    torch.testing.assert_close(sr.clamp(0, 1), expected.clamp(0, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_layouts_copies_precision_and_gradients(spandrel: ModuleType, name: str) -> None:
    network = small(name)
    x = torch.rand(2, 3, 16, 16)
    expected = network(x)
    last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    sr = last(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(sr, expected, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = network.train()(x)
    assert low.dtype == torch.float32 and not torch.equal(low, low.bfloat16().float())
    low.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters() if parameter.requires_grad)


def test_a_student_compiles_to_one_graph(spandrel: ModuleType) -> None:
    network = small("swinir-light")
    x = torch.rand(1, 3, 16, 16)
    compiled = torch.compile(network, fullgraph=True, backend="eager", dynamic=False)
    assert torch.equal(compiled(x), network(x))


@pytest.mark.parametrize("name", SMALL)
def test_a_file_with_a_header_is_built_again(spandrel: ModuleType, tmp_path: Path, name: str) -> None:
    network = small(name, 4)
    file = tmp_path / "student.safetensors"
    save_weights(file, network.state_dict(), identity(name, SMALL[name], 4))
    generator = torch.get_rng_state()
    loaded = load_network(file)
    assert torch.equal(generator, torch.get_rng_state())
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    x = torch.rand(1, 3, 16, 21)
    with torch.no_grad():
        assert torch.equal(loaded(x), network(x))
    again = build(name, 4, **SMALL[name]).eval()
    count = len(network.state_dict())
    assert f"{count} of {count} tensors loaded" in load_into(again, file)
    with torch.no_grad():
        assert torch.equal(again(x), network(x))


def test_the_library_reads_what_is_written(spandrel: ModuleType, tmp_path: Path) -> None:
    network = small("swinir-light", 3)
    torch.save({"params": network.state_dict()}, tmp_path / "a.pth")
    x = torch.rand(1, 3, 16, 16)
    theirs = spandrel.ModelLoader().load_from_file(tmp_path / "a.pth").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs.model(x), network(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_library_computes_our_rcan(spandrel: ModuleType, scale: int) -> None:
    ours = build("rcan", scale, groups=2, blocks=2, channels=32).eval()
    theirs = spandrel.MAIN_REGISTRY.load(ours.state_dict()).eval()
    assert (theirs.architecture.id, theirs.scale) == ("RCAN", scale)
    x = torch.rand(1, 3, 20, 14)
    with torch.no_grad():
        torch.testing.assert_close(theirs.model(x.clone()), ours(x), rtol=0, atol=1e-5)


def test_bare_files_are_recognised(spandrel: ModuleType, tmp_path: Path) -> None:
    network, file = small("swinir-light", 3), tmp_path / "a.pth"
    torch.save({"params_ema": network.state_dict()}, file)
    known = [{}, {"scale": 3}, {"name": "spandrel:SwinIR"}, {"name": "swinir-light", "scale": 3}]
    x = torch.rand(1, 3, 16, 16)
    for given in known:
        loaded: Any = load_network(file, **given)
        assert (loaded.architecture, loaded.scale) == ("SwinIR", 3)
        with torch.no_grad():
            assert torch.equal(loaded(x), network(x))
    with pytest.raises(UserError, match=r"a\.pth holds SwinIR x3, not x2; take --scale 3, or give weights for x2"):
        load_network(file, scale=2)
    with pytest.raises(UserError, match=r"holds SwinIR x3, no CRAFT; name SwinIR"):
        load_network(file, "spandrel:CRAFT")
    with pytest.raises(UserError, match=r"a\.pth does not fit edsr at any scale"):
        load_network(file, "edsr")


def test_rcan_of_an_unusual_size_and_without_mean_shifts(spandrel: ModuleType, tmp_path: Path) -> None:
    """What this package has no name for goes to the library, which knows both."""
    ours = build("rcan", 2, groups=1, blocks=2, channels=16).eval()
    torch.save(ours.state_dict(), tmp_path / "small.pth")
    x = torch.rand(1, 3, 12, 12)
    with torch.no_grad():
        torch.testing.assert_close(load_network(tmp_path / "small.pth")(x), ours(x), rtol=0, atol=1e-5)
    plain = build("spandrel:RCAN", 2, norm=False, **SMALL["spandrel:RCAN"]).eval()
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    with torch.no_grad():
        assert torch.equal(load_network(tmp_path / "plain.pth", "spandrel:RCAN")(x), plain(x))


def test_weights_of_another_scale_and_patch(spandrel: ModuleType, tmp_path: Path) -> None:
    first, file = small("swinir-light", 2), tmp_path / "x2.safetensors"
    save_weights(file, first.state_dict(), {})
    student = build("swinir-light", 3, **SMALL["swinir-light"] | {"img_size": 24})
    line = load_matching(student, file)
    assert "fresh: " in line and "upsample.0.weight" in line and "attn_mask" in line
    assert torch.equal(student.state_dict()["conv_first.weight"], first.state_dict()["conv_first.weight"])


def test_what_is_no_super_resolution_of_rgb_is_refused(spandrel: ModuleType, tmp_path: Path) -> None:
    grey, restoration = SMALL["swinir-light"] | {"in_chans": 1}, SMALL["swinir-light"] | {"upsampler": ""}
    with pytest.raises(
        UserError, match="SwinIR of spandrel maps 1 to 1 channels at x2 for SR; choose one for SR of RGB"
    ):
        build("swinir-light", 2, **grey)
    with pytest.raises(UserError, match="SwinIR of spandrel maps 3 to 3 channels at x1 for Restoration"):
        build("swinir-light", 2, **restoration)
    for number, sizes in enumerate((grey, restoration)):
        options = {"window_size": 8, "mlp_ratio": 2, "upsampler": "pixelshuffledirect"} | sizes
        model = sys.modules["spandrel.architectures.SwinIR"].SwinIR(upscale=2, **options)
        torch.save(model.state_dict(), tmp_path / f"{number}.pth")
        with pytest.raises(UserError, match=r"\.pth fits none of edsr, .*, and SwinIR of spandrel maps") as caught:
            load_network(tmp_path / f"{number}.pth")
        assert "\n" not in str(caught.value)


def test_options_that_do_not_fit_are_named(spandrel: ModuleType) -> None:
    with pytest.raises(UserError, match="spandrel has no architecture 'Swim'; it has Compact, "):
        build("spandrel:Swim", 2)
    with pytest.raises(UserError, match="swinir-light has no option 'blocks'; it has img_size, "):
        build("swinir-light", 2, blocks=4)
    with pytest.raises(UserError, match=r"swinir-light x2 cannot be built: .*; fix its options") as caught:
        build("swinir-light", 2, window_size=7)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="scale of swinir-light is set with --scale; leave upscale out"):
        build("swinir-light", 2, upscale=2)
    with pytest.raises(UserError, match="spandrel:DnCNN has no scale"):
        build("spandrel:DnCNN", 2)
    with pytest.raises(UserError, match="ESRGAN cannot be built at x3, only at x2"):
        build("spandrel:ESRGAN", 3, num_blocks=1, num_filters=8)


def test_files_that_only_look_like_one(spandrel: ModuleType, tmp_path: Path) -> None:
    state = small("swinir-light").state_dict()
    torch.save(state | {"conv_first.weight": torch.zeros(5, 3, 3, 3)}, tmp_path / "a.pth")
    torch.save({"some.weight": torch.zeros(5)}, tmp_path / "b.pth")
    with pytest.raises(UserError, match=r"a\.pth fits none of .*, and spandrel cannot build it \(") as caught:
        load_network(tmp_path / "a.pth")
    assert "\n" not in str(caught.value)
    with pytest.raises(
        UserError, match=r"b\.pth fits none of .*, and spandrel does not know it either; name its network"
    ):
        load_network(tmp_path / "b.pth")


def test_without_the_library_its_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spandrel", None)
    torch.save({"conv_first.weight": torch.zeros(5, 3, 3, 3)}, tmp_path / "a.pth")
    for attempt in (lambda: build("swinir-light", 2), lambda: load_network(tmp_path / "a.pth")):
        with pytest.raises(UserError, match=r'spandrel cannot be imported .*; pip install "spandrel>=0\.4\.2,<0\.5"$'):
            attempt()


@pytest.mark.slow
def test_the_library_computes_beside_a_torchvision_without_operators(spandrel: ModuleType) -> None:
    """In a fresh process, since here it is imported already."""
    pytest.importorskip("torchvision")
    code = """
        import torch
        from eco_fast.models import build
        with torch.no_grad():
            print(tuple(build("swinir-light", 2)(torch.rand(1, 3, 9, 13)).shape))
        import spandrel, torchvision
    """
    result = subprocess.run([sys.executable, "-c", dedent(code)], capture_output=True, text=True)
    assert (result.stdout, result.returncode) == ("(1, 3, 18, 26)\n", 0), result.stderr


def test_a_library_that_fails_at_its_import_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spandrel.py").write_text("raise RuntimeError('another build\\nmore')\n")
    monkeypatch.delitem(sys.modules, "spandrel", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r'^spandrel cannot be imported \(another build\); pip install "spandrel>='):
        build("swinir-light", 2)


@pytest.mark.slow
def test_craft_reaches_its_figures(spandrel: ModuleType, testdata: Path) -> None:
    file = testdata / "weights" / "CRAFT" / "team34_craft.pth"
    model = evaluate_networks([file], [testdata / "Set5"])[0].scores["Set5"].model
    assert np.mean(model.psnr_y) == pytest.approx(32.42, abs=0.01)
    assert np.mean(model.ssim_y) == pytest.approx(0.8973, abs=0.0005)
