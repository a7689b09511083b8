"""`eco-fast doctor` says what is installed, and how to get what is missing."""

import json
import sys

import pytest
import torch

from eco_fast.cli import main
from eco_fast.commands import doctor
from eco_fast.commands.doctor import diagnose
from eco_fast.extras import EXTRAS, Extra


def test_tables_and_json_hold_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["doctor", "--json"], ["doctor"]):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 0
    said = capsys.readouterr().out
    found = json.JSONDecoder().raw_decode(said)[0]
    assert found["versions"]["torch"] == str(torch.__version__)
    assert set(found) == {"versions", "device", "uses", "missing", "extras"}
    assert set(found["extras"]) == set(EXTRAS)
    assert all(part in said.rpartition("Versions")[2] for part in found["uses"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")
def test_without_a_gpu() -> None:
    found = diagnose()
    assert found["device"]["GPU"].startswith("none")
    assert found["uses"]["kernels"].startswith("plain PyTorch")
    assert found["uses"]["CUDA graph"].startswith("left out")


def test_what_is_missing_has_a_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setitem(EXTRAS, "demo", Extra("photographs", ("no-such-package>=1",)))
    found = diagnose()
    assert found["uses"]["data path"] == "images are decoded by Pillow"
    assert "no-such-compiler" in found["missing"]["compile"] and found["uses"]["compile"].startswith("off")
    assert found["extras"]["demo"] == "photographs: pip install no-such-package"


def test_a_dali_that_does_not_load_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    for installed in (None, "2.4.0"):
        monkeypatch.setattr(doctor, "versions", lambda name, installed=installed: {"nvidia-dali-cuda130": installed})
        assert ("data path" in diagnose()["missing"]) == (installed is not None)


def test_it_fits_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    doctor.doctor()
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and any("Extras" in line for line in lines)
