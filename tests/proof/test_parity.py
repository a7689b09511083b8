"""The comparisons of the proof: they cover everything, hold on the CPU, and see what is wrong."""

import csv
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import Tensor

from eco_fast.proof import kernels, offline, training
from eco_fast.proof.outcome import Evidence, NotRun, Outcome
from eco_fast.proof.stage import Stage

CPU = torch.device("cpu")


@pytest.mark.slow
def test_every_specialisation_is_called() -> None:
    pytest.importorskip("triton")
    from eco_kernels.offline import specialisations

    known = frozenset(kernel.name for kernel in specialisations())
    assert kernels.coverage(known).compared == len(known) > 300
    assert not kernels.coverage(known).faults
    assert kernels.coverage(known | {"a new one"}).faults == ("a new one is called by no case",)


@pytest.mark.slow
def test_operations_are_right_on_the_cpu() -> None:
    evidence = kernels.parity(CPU)
    assert evidence.compared > 250
    assert not evidence.faults


@pytest.mark.slow
def test_no_case_chosen_is_nothing_compared() -> None:
    assert kernels.parity(CPU, frozenset({"no such kernel"})).compared == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("operation", "kind"), [("gather_patches", "gather-"), ("bicubic_downsample", "bicubic"), ("downsample_mix", "mix")]
)
def test_a_wrong_value_is_seen(monkeypatch: pytest.MonkeyPatch, operation: str, kind: str) -> None:
    right = getattr(kernels, operation)

    def wrong(*arguments: object, **options: object) -> Tensor:
        result = right(*arguments, **options).clone()
        result[(-1,) * result.ndim] += 1 if result.dtype == torch.uint8 else 0.02
        return result

    monkeypatch.setattr(kernels, operation, wrong)
    faults = kernels.parity(CPU).faults
    assert faults and all(fault.startswith(kind) for fault in faults)


@pytest.mark.slow
def test_a_wrong_gradient_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = kernels.eco_loss_with_grad

    def wrong(*arguments: Tensor, **options: object) -> tuple[Tensor, Tensor]:
        loss, grad = right(*arguments, **options)
        return loss, grad * 1.02

    monkeypatch.setattr(kernels, "eco_loss_with_grad", wrong)
    assert len(kernels.parity(CPU).faults) >= 135  # every type and kind


def test_plain_pytorch_does_not_pass_for_kernels() -> None:
    with pytest.raises(NotRun, match="plain PyTorch computes on cpu"):
        kernels.kernels_must_run(CPU)


def status(evidence: Evidence) -> str:
    return Outcome("check", "cpu", evidence).status


@pytest.mark.slow
def test_code_for_every_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two kernels here; of all defaults it is made in the proof."""
    pytest.importorskip("triton")
    report = import_module("compile_report")
    monkeypatch.setattr(report, "DEFAULTS", {"judge", "gather-uint8-i64"})
    evidence = offline.compiled(Stage("cpu", tmp_path, tmp_path, 600, print))
    assert not evidence.faults and evidence.compared == 2 * 6
    with (tmp_path / "compile_report.csv").open(newline="", encoding="utf-8") as file:
        assert {row["specialisation"] for row in csv.DictReader(file)} == {"judge", "gather-uint8-i64"}
    spilling = [{**row, "spill_bytes": 8} for row in report.rows(everything=False)][:1]
    monkeypatch.setattr(report, "rows", lambda everything: iter(spilling))
    assert "spills 8 bytes" in offline.compiled(Stage("cpu", tmp_path, tmp_path, 600, print)).faults[0]


@pytest.mark.slow
def test_switches_of_training(tmp_path: Path) -> None:
    said: list[dict[str, object]] = []
    evidence = training.switches(Stage("cpu", tmp_path, tmp_path, 600, said.append))
    assert not evidence.faults
    assert [each["case"] for each in said] == list(training.SWITCHES)
    assert {str(each["case"]) for each in said if str(each["result"]).startswith("not run")} <= {
        "CUDA graph and single launches",
        "kernels and plain PyTorch",
        "compiled and eager",  # without a compiler
    }


@pytest.mark.slow
def test_every_kind_of_loop_runs(tmp_path: Path) -> None:
    runs = training.Training(tmp_path, "cpu")
    for name in ("eco", "eco, online teacher"):
        assert not training.watch(runs, training.LOOPS[name])


def test_a_loop_that_asks_the_device_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look-out raises a RuntimeError where the host would wait."""

    def ask(device: str, mode: str) -> None:
        if mode == "error":
            monkeypatch.setattr(training.Loop, "advance", waits)

    def waits(self: training.Loop, step: int) -> None:
        raise RuntimeError("called a synchronizing CUDA operation")

    monkeypatch.setattr(training, "_wait_is_error", ask)
    assert training.watch(training.Training(tmp_path, "cpu"), {}) == "called a synchronizing CUDA operation"


@pytest.mark.slow
def test_a_switch_that_changes_the_weights_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = training.Training.weights

    def wrong(self: training.Training, settings: training.Settings = {}, **options: int) -> Tensor:  # noqa: B006
        weights = right(self, settings, **options)
        return weights * (1 + 1e-6) if settings.get("run.lanes") else weights

    monkeypatch.setattr(training.Training, "weights", wrong)
    runs = training.Training(tmp_path, "cpu")
    assert status(runs.repeat()) == "passed"
    assert status(runs.lanes()) == "failed"


def test_runs_that_learn_nothing_do_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.Training, "weights", lambda self, settings=(), **options: torch.ones(3))
    outcome = Outcome("equal", "cpu", training.Training(tmp_path, "cpu").repeat())
    assert (outcome.status, outcome.detail) == ("failed", "50 steps change no weight")


def test_what_is_not_a_number_is_infinitely_far() -> None:
    assert training.relative_distance(torch.tensor([float("nan")]), torch.ones(1)) == float("inf")
