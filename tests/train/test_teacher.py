"""The guard against a teacher that shares memory with the student, and the precision of its centroids."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from eco_fast.commands.prepare import prepare_store
from eco_fast.data.store import PreparedStore, stored_teachers
from eco_fast.errors import UserError
from eco_fast.models import build
from eco_fast.models.weights import identity, load_network, save_weights
from eco_fast.train import machine
from eco_fast.train.teacher import freeze, refuse_shared_storage, settled_precision, teacher_identity
from tests.conftest import exit_code


def test_the_student_itself_is_refused() -> None:
    student = nn.Conv2d(3, 3, 3)
    with pytest.raises(UserError, match=r"shares the memory of weight"):
        refuse_shared_storage(student, student)


def test_one_shared_tensor_behind_a_view_is_refused() -> None:
    student, teacher = nn.Linear(4, 4), nn.Linear(4, 4)
    teacher.bias.data = student.weight.data[1]
    with pytest.raises(UserError, match="bias"):
        refuse_shared_storage(teacher, nn.Linear(2, 2), student)


def test_a_copy_is_accepted_and_frozen() -> None:
    student = nn.Conv2d(3, 3, 3)
    teacher = freeze(copy.deepcopy(student))
    refuse_shared_storage(teacher, student)
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize(
    ("device", "fast", "stored", "expected"),
    [
        ("cuda", True, (), "bf16"),
        ("cuda", False, (), "fp32"),
        ("cpu", True, (), "fp32"),  # the same centroids on all CPUs
        ("cuda", True, ("fp32",), "fp32"),
        ("cpu", True, ("bf16",), "bf16"),
        ("cuda", True, ("fp32", "bf16"), "bf16"),
        ("cpu", True, ("fp32", "bf16"), "fp32"),
    ],
)
def test_precision(
    device: str, fast: bool, stored: tuple[str, ...], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "has_fast_bf16", lambda device: fast)
    teacher = nn.Conv2d(3, 3, 3)
    known = ["of another", *(teacher_identity(teacher, each) for each in stored)]
    assert settled_precision("auto", teacher, device, known) == expected
    assert settled_precision("fp32", teacher, device, known) == "fp32"
    assert settled_precision("bf16", teacher, device, known) == "bf16"


@pytest.mark.usefixtures("own_cache")
def test_prepare_takes_what_is_stored(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another precision than this device's own; one that is named is made beside it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file, options = tmp_path / "teacher.safetensors", {"blocks": 1, "channels": 4}
    save_weights(file, build("edsr-tiny", 2, **options).state_dict(), identity("edsr-tiny", options, 2))

    def prepared(precision: str, **of_the_teacher: Any) -> list[str]:
        prepare_store(
            [photos],
            [2],
            tmp_path / "store",
            lr_dir=None,
            teacher_file=file,
            teacher_name=None,
            precision=precision,
            allow_16bit=False,
            **of_the_teacher,
        )
        return stored_teachers(tmp_path / "store", 2)

    network = load_network(file, name=None, scale=2)
    low, full = (teacher_identity(network, precision) for precision in ("bf16", "fp32"))
    assert stored_teachers(tmp_path / "store", 2) == []
    assert prepared("bf16") == [low]
    assert prepared("auto") == [low]
    assert "centroids at x2 in bf16, rounded to 8 bit" in capsys.readouterr().out
    assert prepared("fp32") == sorted([low, full]) == PreparedStore.open(tmp_path / "store").teachers(2)
    with pytest.raises(UserError, match="unknown precision 'half'; take one of auto, fp32, bf16"):
        prepared("half")


def test_prepare_takes_the_weights_and_the_device_that_are_named(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    checkpoint, options = tmp_path / "run" / "checkpoints" / "step-00000001", {"blocks": 1, "channels": 4}
    checkpoint.mkdir(parents=True)
    networks = {name: build("edsr-tiny", 2, **options) for name in ("ema", "weights")}
    for name, network in networks.items():
        save_weights(checkpoint / f"{name}.safetensors", network.state_dict(), identity("edsr-tiny", options, 2))

    def prepare(*arguments: object) -> int:
        return exit_code("prepare", photos, *arguments)

    for name, raw in (("ema", ()), ("weights", ("--raw",))):
        store = tmp_path / name
        assert prepare("--teacher", tmp_path / "run", "--out", store, "--device", "cpu", *raw) == 0
        assert stored_teachers(store, 2) == [teacher_identity(networks[name], "fp32")]
    assert prepare("--teacher", tmp_path / "run", "--out", tmp_path / "gpu", "--device", "cuda") == 2
    assert "--device cuda: PyTorch sees no GPU" in capsys.readouterr().err
    assert prepare("--out", tmp_path / "none", "--raw", "--device", "cpu") == 2
    assert "--device and --raw would be the teacher's; name one with --teacher" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
