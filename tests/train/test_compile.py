"""What `run.compile=auto` means, and what is said about it."""

import pytest

from eco_fast.errors import UserError
from eco_fast.train import machine as compiled
from eco_fast.train.machine import resolve_compile, why_off


@pytest.mark.parametrize(
    ("network", "device", "precision", "expected"),
    [
        ("edsr", "cuda", "fp32", "default"),
        ("edsr-tiny", "cpu", "bf16", "off"),
        ("edsr-baseline", "cpu", "bf16", "default"),
        ("edsr-baseline", "cpu", "fp32", "off"),
    ],
)
def test_auto(network: str, device: str, precision: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "missing_tool", lambda: None)
    assert resolve_compile("auto", network, device, precision) == expected
    assert (why_off(network, device, precision) is None) == (expected == "default")
    assert resolve_compile("max-autotune", network, device, precision) == "max-autotune"
    assert resolve_compile("off", network, device, precision) == "off"


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert resolve_compile("auto", "edsr", "cuda", "bf16") == "off"
    assert why_off("edsr", "cuda", "bf16") == "it needs a C++ compiler (no-such-compiler)"
    with pytest.raises(UserError, match=r"run\.compile=default needs a C\+\+ compiler"):
        resolve_compile("default", "edsr", "cuda", "bf16")


def test_without_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": "/nowhere"})
    assert "headers" in str(why_off("edsr", "cuda", "bf16"))
