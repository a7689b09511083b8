"""Weights in and out of files, and what the messages say when they do not fit."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from eco_fast.errors import UserError
from eco_fast.models import build
from eco_fast.models.weights import identity, load_into, load_matching, load_network, read_weights, save_weights

OPTIONS = {"blocks": 2, "channels": 8}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def write(path: Path, value: float, scale: int = 2) -> Path:
    """A small EDSR whose weights are all `value`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = build("edsr-tiny", scale, **OPTIONS).state_dict()
    filled = {key: v if "mean" in key else torch.full_like(v, value) for key, v in state.items()}
    save_weights(path, filled, identity("edsr-tiny", OPTIONS, scale))
    return path


def value_of(network: torch.nn.Module) -> float:
    return network.get_parameter("head.0.weight").flatten()[0].item()


def test_round_trip_keeps_network_weights_and_header(tmp_path: Path) -> None:
    network = build("edsr-tiny", 3, **OPTIONS, res_scale=0.5).to(memory_format=torch.channels_last)
    metadata = identity("edsr-tiny", OPTIONS | {"res_scale": 0.5}, 3)
    file = tmp_path / "a.safetensors"
    save_weights(file, network.state_dict(), metadata)
    state, header = read_weights(file)
    assert header == metadata
    assert equal(state, network.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]

    loaded = load_network(file)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    x = torch.rand(1, 3, 12, 12)
    torch.testing.assert_close(loaded(x), network(x), rtol=1e-5, atol=1e-6)


def test_equal_weights_give_equal_bytes(tmp_path: Path) -> None:
    """The library's order of the metadata differs from write to write, in one process and in several."""
    code = "import sys; from tests.models.test_weights import write_with_much_metadata as w; w(sys.argv[1])"
    files = [tmp_path / f"{i}.safetensors" for i in range(6)]
    for file in files[:-1]:
        write_with_much_metadata(file)
    subprocess.run([sys.executable, "-c", code, files[-1]], cwd=Path(__file__).parents[2], check=True)
    assert len({file.read_bytes() for file in files}) == 1
    assert safetensors.torch.load_file(files[0]).keys() == read_weights(files[0])[0].keys()
    assert read_weights(files[0])[1]["ключ"] == 'a "quoted" wörd'


def write_with_much_metadata(file: Path | str) -> None:
    state = {"b.ä": torch.arange(3.0), "a": torch.zeros(2, dtype=torch.uint8), "c": torch.ones(1, 2)}
    save_weights(file, state, {f"key{i}": str(i) for i in range(20)} | {"ключ": 'a "quoted" wörd'})


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.safetensors", 1.0)

    def full(descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write(file, 2.0)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    assert value_of(load_network(file)) == 1.0


def test_loading_draws_nothing_from_the_generator(tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", 1.0)
    before = torch.get_rng_state()
    load_network(file)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"params": state},
        lambda state: {"params": {"x": torch.zeros(1)}, "params_ema": state},
        lambda state: {"params-ema": state, "params": {"x": torch.zeros(1)}},
        lambda state: {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {"model": {f"netG.{key}": value for key, value in state.items()}},
        lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
    ],
    ids=["bare", "params", "params_ema", "params-ema", "state_dict and module", "model and netG", "compiled"],
)
@pytest.mark.parametrize("extension", [".pth", ".pt"])
def test_published_wrappings(tmp_path: Path, wrap: Any, extension: str) -> None:
    network = build("edsr-tiny", 4)
    file = tmp_path / f"a{extension}"
    torch.save(wrap(network.state_dict()), file)
    state, header = read_weights(file)
    assert header == {}
    assert equal(state, network.state_dict())


def test_half_precision_weights_load_as_float32_and_keep_channels_last(tmp_path: Path) -> None:
    network = build("edsr-tiny", 2)
    file = tmp_path / "a.pth"
    torch.save({key: v if "mean" in key else v.half() for key, v in network.state_dict().items()}, file)
    assert {p.dtype for p in load_network(file).parameters()} == {torch.float32}
    target = build("edsr-tiny", 2).to(memory_format=torch.channels_last)
    load_into(target, file)
    weight = target.get_parameter("body.0.body.0.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(weight, network.get_parameter("body.0.body.0.weight"), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "scale"), [("edsr-tiny", 3), ("rlfn-s", 4), ("rlfn-ntire", 2)])
def test_bare_files_are_recognised(tmp_path: Path, name: str, scale: int) -> None:
    network = build(name, scale)
    file = tmp_path / "a.pth"
    torch.save(network.state_dict(), file)
    for known in ({}, {"name": name}, {"scale": scale}, {"name": name, "scale": scale}):
        loaded = load_network(file, **known)
        assert loaded.scale == scale
        assert equal(loaded.state_dict(), network.state_dict())


@pytest.mark.parametrize("name", ["edsr-baseline", "rcan"])
def test_the_mean_shifts_may_be_left_out_of_a_file(tmp_path: Path, name: str) -> None:
    state = build(name, 3).state_dict()
    file = tmp_path / "a.pth"
    torch.save({key: value for key, value in state.items() if "mean" not in key}, file)
    target = build(name, 3)
    with pytest.warns(UserWarning, match=r"a\.pth holds no mean shifts: the published ones are taken"):
        line = load_into(target, file)
    assert f"{len(state) - 4} of {len(state)} tensors loaded" in line
    assert line.endswith("fresh: sub_mean.weight, sub_mean.bias, add_mean.weight, add_mean.bias")
    with pytest.warns(UserWarning, match="mean shifts"):
        loaded = load_network(file)
    assert loaded.scale == 3
    assert equal(loaded.state_dict(), state) and equal(target.state_dict(), state)


def test_loading_says_how_much_it_loaded(tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", 1.0)
    network = build("edsr-tiny", 2, **OPTIONS)
    parameters = sum(value.numel() for value in network.state_dict().values())
    assert load_into(network, file) == f"{file}: 20 of 20 tensors loaded ({parameters:,} of {parameters:,} parameters)"


@pytest.mark.parametrize(
    ("source", "scale", "fresh"),
    [
        (2, 3, ["tail.0.0.weight", "tail.0.0.bias"]),
        (2, 4, ["tail.0.2.weight", "tail.0.2.bias"]),
        (4, 2, []),
        (2, 2, []),
    ],
)
def test_weights_of_another_scale_fill_all_but_the_upsampler(
    tmp_path: Path, source: int, scale: int, fresh: list[str]
) -> None:
    file = write(tmp_path / "a.safetensors", 5.0, source)
    network = build("edsr-tiny", scale, **OPTIONS)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    line = load_matching(network, file)
    count = len(before)
    assert line.startswith(f"{file}: {count - len(fresh)} of {count} tensors loaded (")
    assert line.endswith(f"; fresh: {', '.join(fresh)}") if fresh else "fresh" not in line
    for key, value in network.state_dict().items():
        if key in fresh or "mean" in key:
            assert torch.equal(value, before[key])
        else:
            assert (value == 5.0).all()


def test_rlfn_starts_from_another_scale_too(tmp_path: Path) -> None:
    torch.save(build("rlfn-s", 2).state_dict(), tmp_path / "a.pth")
    line = load_matching(build("rlfn-s", 4), tmp_path / "a.pth")
    assert line.endswith("fresh: upsampler.0.weight, upsampler.0.bias")


def test_another_body_is_no_start(tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", 5.0)
    for options, difference in (
        ({"blocks": 3}, r"body\.2\.body\.0\.weight is nothing where the network has \(8, 8, 3, 3\)"),
        ({"blocks": 1}, r"body\.1\.weight is nothing where"),
        ({"channels": 9}, r"head\.0\.weight is \(8, 3, 3, 3\) where the network has \(9, 3, 3, 3\)"),
    ):
        network = build("edsr-tiny", 2, **OPTIONS | options)
        before = {key: value.clone() for key, value in network.state_dict().items()}
        with pytest.raises(UserError, match=rf"a\.safetensors differs beyond the upsampler: {difference}"):
            load_matching(network, file)
        assert equal(network.state_dict(), before)
    with pytest.raises(UserError, match="holds another network, nothing in it fits"):
        load_matching(build("rlfn-s", 2), file)


class Malicious:
    """Makes the folder `trap` when it is unpickled."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"mkdir {self.trap}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, legacy: bool) -> None:
    file = tmp_path / "evil.pth"
    torch.save({"params": Malicious(tmp_path / "trap")}, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"evil\.pth holds \w+\.system .* refused"):
        read_weights(file)
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("extension", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"not weights at all\n", b"\x89PNG\r\n\x1a\n" + bytes(100), b"PK\x03\x04junk"]
)
def test_other_files_are_named(tmp_path: Path, extension: str, content: bytes) -> None:
    file = tmp_path / f"x{extension}"
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"x{extension} is .*download it again") as caught:
        read_weights(file)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    torch.save(build("edsr-tiny", 2).state_dict(), tmp_path / "a.pth")
    write(tmp_path / "a.safetensors", 1.0)
    for file in (tmp_path / "a.pth", tmp_path / "a.safetensors"):
        file.write_bytes(file.read_bytes()[:5000])
        with pytest.raises(UserError, match="download it again"):
            load_network(file)


def test_missing_files_and_other_extensions(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no weights file .*gone\.pth"):
        load_network(tmp_path / "gone.pth")
    (tmp_path / "a.onnx").write_bytes(b"x")
    with pytest.raises(UserError, match=r"a\.onnx is not a weights file; give a \.safetensors"):
        load_network(tmp_path / "a.onnx")
    with pytest.raises(ValueError, match=r"not as a\.pth"):
        save_weights(tmp_path / "a.pth", {}, {})


@pytest.mark.parametrize("content", [{}, [1, 2], {"epoch": 3}, {"params": {}}, torch.zeros(3)])
def test_data_without_weights_is_named(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(UserError, match="holds no state dict"):
        read_weights(tmp_path / "a.pt")


def test_a_dictionary_that_holds_itself_ends(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["params"] = content
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(UserError, match="holds no state dict"):
        read_weights(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "odd",
    [
        torch.zeros(1).expand(10**6, 10**6),  # 10^12 numbers, 4 bytes in the file
        torch.zeros(0, 10**12),
        torch.zeros(3, 3).to_sparse(),
        torch.zeros(3, dtype=torch.complex64),
        torch.zeros(3, device="meta"),
    ],
    ids=["expanded", "empty", "sparse", "complex", "meta"],
)
def test_tensors_that_are_not_plain_are_named(tmp_path: Path, odd: torch.Tensor) -> None:
    torch.save(build("edsr-tiny", 2).state_dict() | {"head.0.bias": odd}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth (holds 'head\.0\.bias', which is no plain tensor|is damaged)"):
        load_network(tmp_path / "a.pth")


def test_wrong_scale_is_named(tmp_path: Path) -> None:
    bare = tmp_path / "bare.pth"
    torch.save(build("rlfn-s", 2).state_dict(), bare)
    with pytest.raises(UserError, match="holds rlfn-s x2 weights, not rlfn-s x4"):
        load_into(build("rlfn-s", 4), bare)
    with pytest.raises(UserError, match="holds rlfn-s x2 weights, not rlfn-s x4"):
        load_network(bare, "rlfn-s", 4)
    ours = write(tmp_path / "ours.safetensors", 1.0, scale=3)
    with pytest.raises(UserError, match="holds edsr-tiny x3, not x2; take --scale 3, or give weights for x2"):
        load_network(ours, scale=2)
    with pytest.raises(UserError, match="holds edsr-tiny x3 weights, not edsr-tiny x2"):
        load_into(build("edsr-tiny", 2), ours)


def test_wrong_network_is_named(tmp_path: Path) -> None:
    bare = tmp_path / "bare.pth"
    torch.save(build("rlfn-s", 2).state_dict(), bare)
    with pytest.raises(UserError, match="holds rlfn-s x2 weights, not edsr-tiny x2"):
        load_into(build("edsr-tiny", 2), bare)
    torch.save({"conv.weight": torch.zeros(3, 3)}, bare)
    with pytest.raises(UserError, match=r"another network \(it has 'conv.weight', unknown here\)"):
        load_into(build("edsr-tiny", 2), bare)
    with pytest.raises(UserError, match=r"fits none of edsr, .*, and spandrel ") as caught:
        load_network(bare)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="does not fit edsr at any scale"):
        load_network(bare, "edsr")
    with pytest.raises(UserError, match="unknown network 'esdr'"):
        load_network(bare, "esdr")


def test_one_differing_entry_is_named_and_nothing_is_loaded(tmp_path: Path) -> None:
    network = build("edsr-tiny", 2)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    file = tmp_path / "a.pth"
    changes = {"tail.1.bias": torch.zeros(4)}
    torch.save({key: torch.ones_like(value) for key, value in before.items()} | changes, file)
    with pytest.raises(UserError, match=r"tail\.1\.bias is \(4,\) where the network, .* has \(3,\)"):
        load_into(network, file)
    torch.save(before | {"extra": torch.zeros(1)}, file)
    with pytest.raises(UserError, match=r"extra is \(1,\) where .* nothing"):
        load_into(network, file)
    torch.save({key: value for key, value in before.items() if key != "head.0.bias"}, file)
    with pytest.raises(UserError, match=r"head\.0\.bias is nothing where .* \(43 of 44 tensors match\)"):
        load_into(network, file)
    assert equal(network.state_dict(), before)
    torch.save(before | {"sub_mean.weight": torch.zeros(3, 3, 1, 1)}, file)
    with pytest.raises(UserError, match=r"sub_mean\.weight is not the identity"):
        load_into(network, file)


def test_a_damaged_header_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    state = build("edsr-tiny", 2).state_dict()
    for header in ({"model": "edsr-tiny"}, {"model": "edsr-tiny", "scale": "2", "options": "{"}):
        save_weights(file, state, header)
        with pytest.raises(UserError, match="damaged header"):
            load_network(file)
    for options in ('{"blocks": 1000000000}', '{"depths": [3, 1000000000]}', "[" * 100_000):
        save_weights(file, state, {"model": "edsr-tiny", "scale": "2", "options": options})
        with pytest.raises(UserError, match="damaged header"):
            load_network(file)
    save_weights(file, state, {"model": "future-net", "scale": "2"})
    with pytest.raises(UserError, match="unknown network 'future-net'"):
        load_network(file)


def test_folders(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="run has no finished checkpoint yet"):
        load_network(run)
    with pytest.raises(UserError, match="holds no weights"):
        load_network(tmp_path)
    write(run / "checkpoints/step-00000900/weights.safetensors", 1.0)
    write(run / "checkpoints/step-00001000/weights.safetensors", 2.0)
    write(run / "checkpoints/.step-00002000/weights.safetensors", 3.0)
    write(run / "checkpoints/step-00003000.tmp/weights.safetensors", 4.0)
    (run / "checkpoints/step-00004000").mkdir()
    assert value_of(load_network(run)) == 2.0
    write(run / "checkpoints/step-00001000/ema.safetensors", 5.0)
    assert value_of(load_network(run)) == 5.0
    assert value_of(load_network(run / "checkpoints/step-00000900")) == 1.0
    write(run / "checkpoints/step-100000000/weights.safetensors", 6.0)  # one digit more: newest by number, not by name
    assert value_of(load_network(run)) == 6.0
