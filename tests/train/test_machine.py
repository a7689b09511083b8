"""What a run computes on."""

import pytest
import torch

from eco_fast.train import machine


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
