"""What `run.compile=auto` means, and what is compiled."""

import pytest

from eco_fast.errors import UserError
from eco_fast.train import machine
from eco_fast.train.machine import resolve_compile


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
