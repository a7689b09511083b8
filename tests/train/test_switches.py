"""Switches change speed, not results: lanes, sources, lines of the log, compilation, accumulation, processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch._dynamo.utils import counters

from eco_fast.config import load_config
from eco_fast.models import build
from eco_fast.models.weights import identity, save_weights
from eco_fast.train.machine import missing_tool
from eco_fast.train.start import train

OPTIONS = {"blocks": 1, "channels": 8}
STEPS = 15  # all phases of alpha are in them
LONG = 30  # with two validations and checkpoints on the way
Plain = Callable[..., dict[str, Tensor]]


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    torch.manual_seed(5)
    file = tmp_path / "teacher.safetensors"
    save_weights(file, build("edsr-tiny", 2, **OPTIONS).state_dict(), identity("edsr-tiny", OPTIONS, 2))
    return file


def flags(photos: Path, out: Path, **settings: object) -> dict[str, Any]:
    plain = {
        "student.options": OPTIONS,
        "data.train": [str(photos)],
        "data.store": str(out.parent / "store"),
        "data.patch": 12,
        "data.batch": 16,
        "data.patches_per_image": 1,
        "run.out": str(out),
        "run.steps": STEPS,
        "run.device": "cpu",
        "run.precision": "fp32",
        "run.threads": 1,
    }
    return {**plain, **{key.replace("__", "."): value for key, value in settings.items()}}


def weights(photos: Path, out: Path, **settings: object) -> dict[str, Tensor]:
    result = train(load_config("edsr-tiny", flags=flags(photos, out, **settings)))
    return load_file(result.checkpoint / "weights.safetensors")


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """To the bit."""
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.fixture(scope="module")
def made() -> dict[str, dict[str, Tensor]]:
    """What `plain` has trained."""
    return {}


@pytest.fixture
def plain(photos: Path, tmp_path: Path, teacher: Path, made: dict[str, dict[str, Tensor]]) -> Plain:
    """Weights to compare with. Images and teacher are the same in every test, so each run is made once for all."""

    def run(**settings: object) -> dict[str, Tensor]:
        key = repr(settings)
        if key not in made:
            made[key] = weights(photos, tmp_path / "plain", teacher__file=teacher, **settings)
        return made[key]

    return run


def relative(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    a, b = (torch.cat([each[name].double().flatten() for name in theirs]) for each in (ours, theirs))
    return float((a - b).norm() / b.norm())


ECO = {
    "lanes": {"run__lanes": False},
    "mapped": {"data__source": "mapped"},
    "log": {"run__log_every": 1},
}


@pytest.mark.parametrize("settings", ECO.values(), ids=ECO.keys())
def test_the_same_bits(photos: Path, tmp_path: Path, teacher: Path, plain: Plain, settings: dict[str, object]) -> None:
    other = weights(photos, tmp_path / "other", mode="eco", teacher__file=teacher, **settings)
    assert_equal(other, plain(mode="eco"))


@pytest.mark.parametrize("source", ["mapped", "files"], indirect=True)
@pytest.mark.parametrize("mode", ["kd", "eco-centroid", "eco", "alpha-sample"])
def test_an_online_teacher_from_every_source(
    photos: Path, tmp_path: Path, teacher: Path, plain: Plain, mode: str, source: str
) -> None:
    settings: dict[str, object] = {"mode": mode, "teacher__mode": "online"}
    other = weights(photos, tmp_path / source, **settings, teacher__file=teacher, data__source=source)
    assert_equal(other, plain(**settings, data__source="resident"))


@pytest.mark.usefixtures("dali")
@pytest.mark.parametrize("copies", [1, 16])
def test_the_same_bits_from_the_original_files(photos: Path, tmp_path: Path, plain: Plain, copies: int) -> None:
    settings = {"mode": "vanilla", "data__patches_per_image": copies}
    other = weights(photos, tmp_path / "other", **settings, data__source="files")
    assert_equal(other, plain(**settings))


@pytest.mark.slow
@pytest.mark.skipif(missing_tool() is not None, reason="torch.compile needs a C++ compiler and Python's headers")
def test_compiled(photos: Path, tmp_path: Path) -> None:
    """One graph for the whole run: nothing is compiled again, and validation does not disturb it."""
    plain = weights(photos, tmp_path / "plain", mode="vanilla", run__compile="off")
    torch._dynamo.reset()
    counters.clear()
    settings = {"run__compile": "default", "data__valid": photos, "run__valid_every": 5}
    other = weights(photos, tmp_path / "other", mode="vanilla", **settings)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    assert relative(other, plain) <= 1e-3


def test_accumulated(photos: Path, tmp_path: Path, plain: Plain) -> None:
    settings = {"mode": "vanilla", "data__patches_per_image": 1}
    other = weights(photos, tmp_path / "other", **settings, optim__accumulate=2)
    assert relative(other, plain(**settings)) <= 1e-5


def torchrun(processes: int, photos: Path, teacher: Path, out: Path, *extra: str) -> list[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += ["-m", "eco_fast", "train", "edsr-tiny"]
    settings = flags(photos, out, mode="eco", teacher__file=str(teacher), data__valid=str(photos))
    settings |= {"run.steps": LONG, "run.checkpoint_every": 10, "run.valid_every": 10}
    for key, value in settings.items():
        command += ["--set", f"{key}={json.dumps(value) if not isinstance(value, dict) else toml(value)}"]
    return [*command, *extra]


def toml(table: dict[str, object]) -> str:
    return "{" + ", ".join(f"{key} = {value}" for key, value in table.items()) + "}"


@pytest.fixture
def environment() -> dict[str, str]:
    root = Path(__file__).parents[2]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(root), str(root / "kernels")])}


@pytest.mark.slow
def test_two_processes_then_one(photos: Path, tmp_path: Path, teacher: Path, environment: dict[str, str]) -> None:
    """The leader alone writes; validation is shared; what two have saved, one goes on with."""
    plain = weights(photos, tmp_path / "plain", mode="eco", teacher__file=teacher, run__steps=LONG)
    command = torchrun(2, photos, teacher, tmp_path / "two")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^step \d+: photos .* dB \(bicubic ", done.stdout, re.MULTILINE)) == 1 + 3
    checkpoints = tmp_path / "two" / "checkpoints"
    assert relative(load_file(checkpoints / "step-00000030" / "weights.safetensors"), plain) <= 1e-5

    records = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "valid"] == [0, 10, 20, 30]
    (checkpoints / "step-00000030").rename(tmp_path / "aside")
    again = train(load_config(tmp_path / "two" / "config.toml"), resume=True)
    assert relative(load_file(again.checkpoint / "weights.safetensors"), plain) <= 1e-5
    scores = [
        r["psnr_y"]
        for r in map(json.loads, (tmp_path / "two" / "metrics.jsonl").read_text().splitlines())
        if r["kind"] == "valid"
    ]
    assert scores[3] == pytest.approx(records[-1]["psnr_y"], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    ["mapped", *(pytest.param(name, marks=pytest.mark.full) for name in ("resident", "files"))],
    indirect=True,
)
def test_two_processes_with_an_online_teacher(
    photos: Path, tmp_path: Path, teacher: Path, environment: dict[str, str], source: str
) -> None:
    online = {"mode": "eco", "teacher__file": teacher, "teacher__mode": "online", "run__steps": LONG}
    plain = weights(photos, tmp_path / "plain", **online)
    settings = ("--set", "teacher.mode=online", "--set", f"data.source={source}")
    command = torchrun(2, photos, teacher, tmp_path / "two", *settings)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "two" / "checkpoints" / "step-00000030" / "weights.safetensors")
    assert relative(found, plain) <= 1e-5


@pytest.mark.slow
def test_one_process_told_to_stop_stops_all(
    photos: Path, tmp_path: Path, teacher: Path, environment: dict[str, str]
) -> None:
    out = tmp_path / "run"
    command = torchrun(2, photos, teacher, out, "--steps", "100000", "--set", "run.log_every=1")
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(workers[-1]), signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode != 0
    assert said.count("go on with --resume") == 1, said  # by the first process, for all
    assert len(list((out / "checkpoints").glob("step-*"))) >= 1


@pytest.mark.slow
def test_an_error_is_said(photos: Path, tmp_path: Path, teacher: Path, environment: dict[str, str]) -> None:
    command = torchrun(2, photos, teacher, tmp_path / "run", "--set", "data.batch=15")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and "batch 15 cannot be split evenly between 2 processes" in done.stderr
