"""What a run computes on."""

import pytest
import torch

from eco_fast.config import parse_config
from eco_fast.errors import UserError
from eco_fast.train import machine
from eco_kernels.dispatch import forget_choices


@pytest.mark.parametrize(("bf16", "expected"), [(0.5, True), (0.95, False), (2.0, False)])
def test_a_trial_decides_about_bf16(monkeypatch: pytest.MonkeyPatch, bf16: float, expected: bool) -> None:
    """It has to be clearly faster, not only there."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(machine, "_seconds", lambda dtype: bf16 if dtype == torch.bfloat16 else 1.0)
    threads = torch.get_num_threads()
    assert machine.has_fast_bf16.__wrapped__("cpu") is expected
    assert torch.get_num_threads() == threads


def test_without_instructions_there_is_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(machine, "_seconds", lambda dtype: pytest.fail("tried"))
    assert machine.has_fast_bf16.__wrapped__("cpu") is False


def test_the_trial_runs_here() -> None:
    assert all(machine._seconds(dtype) > 0 for dtype in (torch.bfloat16, torch.float32))


@pytest.mark.parametrize(("graph", "expected"), [("auto", False), (True, True), (False, False)])
def test_a_graph_by_default_is_for_gpus(graph: object, expected: bool) -> None:
    config = parse_config({"run": {"device": "cpu", "precision": "fp32", "graph": graph}}, "test")
    assert machine.resolve(config).run.graph is expected


def test_a_graph_by_default_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(machine, "runs_kernels", lambda device: True)
    config = parse_config({"run": {"device": "cuda", "precision": "fp32", "compile": "off"}}, "test")
    resolved = machine.resolve(config)
    assert resolved.run.graph is True
    resumed = config.model_copy(update={"run": resolved.run.model_copy(update={"graph": False})})
    assert machine.resolve(config, previous=resumed).run.graph is False


@pytest.mark.parametrize(
    ("device", "precision", "fast", "expected"),
    [
        ("cuda", "bf16", True, "bf16"),
        ("cuda", "fp16", True, "bf16"),
        ("cuda", "fp16", False, "fp32"),
        ("cuda", "tf32", True, "fp32"),
        ("cpu", "bf16", True, "fp32"),
    ],
)
def test_validation_by_default(
    device: str, precision: str, fast: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(machine, "runs_kernels", lambda device: True)
    monkeypatch.setattr(machine, "has_fast_bf16", lambda device: fast)
    settings = {"device": device, "precision": precision, "compile": "off"}
    assert machine.resolve(parse_config({"run": settings}, "test")).run.valid_precision == expected
    named = parse_config({"run": {**settings, "valid_precision": "bf16"}}, "test")
    assert machine.resolve(named).run.valid_precision == "bf16"


def test_precisions_of_a_resumed_run_are_those_of_its_first_part() -> None:
    auto = parse_config({"run": {"device": "cpu", "precision": "fp32"}}, "test")
    first = parse_config({"run": {"valid_precision": "bf16"}, "teacher": {"precision": "bf16"}}, "test")
    resumed = machine.resolve(auto, previous=first)
    assert (resumed.run.valid_precision, resumed.teacher.precision) == ("bf16", "bf16")
    assert machine.resolve(auto).teacher.precision == "auto"  # its store decides


def test_kernels_that_cannot_be_used_are_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECO_KERNELS", "fast")
    forget_choices()
    with pytest.raises(UserError, match=r"^ECO_KERNELS is 'fast'; it must be one of auto, reference, triton$"):
        machine.resolve(parse_config({"run": {"device": "cpu"}}, "test"))
    monkeypatch.undo()
    forget_choices()
