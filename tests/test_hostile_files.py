"""Weights files that are broken or mean harm: refused in one line, by `load_network` and by the command line."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eco_fast.cli import main
from eco_fast.errors import UserError
from eco_fast.models import build
from eco_fast.models.weights import identity, load_network, save_weights

OPTIONS = {"blocks": 1, "channels": 4}


class Code:
    """Makes the folder `trap` when it is unpickled."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trap),)


def _state() -> dict[str, torch.Tensor]:
    return build("edsr-tiny", 2, **OPTIONS).state_dict()


def _good(path: Path) -> bytes:
    save_weights(path, _state(), identity("edsr-tiny", OPTIONS, 2))
    return path.read_bytes()


def _pickle_with_code(folder: Path) -> Path:
    torch.save({"params": _state(), "extra": Code(folder / "trap")}, folder / "x.pth")
    return folder / "x.pth"


def _old_pickle_with_code(folder: Path) -> Path:
    torch.save(Code(folder / "trap"), folder / "x.pt", _use_new_zipfile_serialization=False)
    return folder / "x.pt"


def _safetensors_that_is_a_pickle_with_code(folder: Path) -> Path:
    return _pickle_with_code(folder).rename(folder / "x.safetensors")


def _truncated(folder: Path, extension: str, share: float) -> Path:
    path = folder / f"x{extension}"
    if extension == ".safetensors":
        _good(path)
    else:
        torch.save(_state(), path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    return path


def _content(folder: Path, extension: str, content: bytes) -> Path:
    path = folder / f"x{extension}"
    path.write_bytes(content)
    return path


def _other_network(folder: Path) -> Path:
    torch.save({f"layer{i}.weight": torch.zeros(4, 4) for i in range(5)}, folder / "x.pth")
    return folder / "x.pth"


def _other_scale_in_the_header(folder: Path) -> Path:
    save_weights(folder / "x.safetensors", _state(), identity("edsr-tiny", OPTIONS, 3))
    return folder / "x.safetensors"


def _giant_in_the_header(folder: Path) -> Path:
    save_weights(folder / "x.safetensors", _state(), identity("edsr-tiny", {"channels": 10**9}, 2))
    return folder / "x.safetensors"


def _expanded(folder: Path) -> Path:
    torch.save({"head.0.weight": torch.zeros(1).expand(10**7, 10**7)}, folder / "x.pth")
    return folder / "x.pth"


def _lying(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], Path]:
    """A .safetensors file whose header is changed."""

    def write(folder: Path) -> Path:
        path = folder / "x.safetensors"
        good = _good(path)
        (length,) = struct.unpack("<Q", good[:8])
        header = json.loads(good[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + good[8 + length :])
        return path

    return write


def _header_length(length: int) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / "x.safetensors"
        path.write_bytes(struct.pack("<Q", length) + _good(path)[8:])
        return path

    return write


HOSTILE: dict[str, Callable[[Path], Path]] = {
    "pickle with code": _pickle_with_code,
    "old pickle with code": _old_pickle_with_code,
    "pickle with code named .safetensors": _safetensors_that_is_a_pickle_with_code,
    "other network": _other_network,
    "other scale in the header": _other_scale_in_the_header,
    "giant in the header": _giant_in_the_header,
    "tensor larger than its file": _expanded,
    "data beyond the file": _lying(lambda header: header["tail.1.bias"].update(data_offsets=[0, 10**9])),
    "data before the file": _lying(lambda header: header["tail.1.bias"].update(data_offsets=[-12, 0])),
    "offsets reversed": _lying(lambda header: header["tail.1.bias"]["data_offsets"].reverse()),
    "overlapping data": _lying(
        lambda header: header["tail.1.bias"].update(data_offsets=header["head.0.bias"]["data_offsets"])
    ),
    "wrong size of dtype": _lying(lambda header: header["tail.1.bias"].update(dtype="F64")),
    "unknown dtype": _lying(lambda header: header["tail.1.bias"].update(dtype="F1024")),
    "huge shape": _lying(lambda header: header["tail.1.bias"].update(shape=[10**9, 10**9])),
    "shape beyond 64 bits": _lying(lambda header: header["tail.1.bias"].update(shape=[2**40, 2**40])),
    "empty shape of a giant": _lying(lambda header: header.update(x=_empty(header, [0, 10**15]))),
    "negative shape": _lying(lambda header: header["tail.1.bias"].update(shape=[-3])),
    "missing tensor": _lying(lambda header: header.pop("tail.1.bias")),
    "no metadata": _lying(lambda header: header.pop("__metadata__")),
    "metadata that is no text": _lying(lambda header: header.update(__metadata__={"model": 3})),
    "options that are no sizes": _lying(lambda header: header["__metadata__"].update(options='{"blocks": [1]}')),
    "options that are a list": _lying(lambda header: header["__metadata__"].update(options="[1, 2]")),
    "options without end": _lying(lambda header: header["__metadata__"].update(options="[" * 100_000)),
    "header longer than the file": _header_length(10**6),
    "header of 2^63 bytes": _header_length(2**63),
    "header of no bytes": _header_length(0),
}
for _extension in (".pth", ".pt", ".safetensors"):
    HOSTILE[f"nothing{_extension}"] = lambda folder, e=_extension: _content(folder, e, b"")
    HOSTILE[f"zeros{_extension}"] = lambda folder, e=_extension: _content(folder, e, bytes(1000))
    HOSTILE[f"text{_extension}"] = lambda folder, e=_extension: _content(folder, e, b"Dear user,\nno weights here\n")
    for _share in (0.02, 0.5, 0.98):
        HOSTILE[f"{_share:.0%} of a {_extension}"] = lambda folder, e=_extension, s=_share: _truncated(folder, e, s)


def _empty(header: dict[str, Any], shape: list[int]) -> dict[str, Any]:
    """Entry of a tensor without elements, at the end of the data."""
    end = max(entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__")
    return {"dtype": "F32", "shape": shape, "data_offsets": [end, end]}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused_in_one_line(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = HOSTILE[kind](tmp_path)
    with pytest.raises(UserError) as refused:
        load_network(path)
    message = str(refused.value)
    assert "\n" not in message and str(path) in message
    with pytest.raises(SystemExit) as stop:
        main(["eval", str(path), "--data", str(tmp_path)])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}".split("(")[0])  # which of several faults is named, chance decides
    assert said.count("\n") == 1
    assert not (tmp_path / "trap").exists()


def test_code_in_a_pickle_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.pth holds \w+\.mkdir besides its weights and is refused"):
        load_network(_pickle_with_code(tmp_path))


@pytest.mark.parametrize("extension", [".pth", ".safetensors"])
def test_flipped_bytes_load_or_are_refused(extension: str, tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / f"x{extension}"
    if extension == ".safetensors":
        good = _good(path)
    else:
        torch.save(build("edsr-tiny", 2).state_dict(), path)
        good = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(good)
        for place in rng.integers(0, min(len(good), 4000), 3):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            load_network(path)
        except UserError as error:
            assert "\n" not in str(error)
