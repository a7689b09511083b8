"""A run that is killed and resumed ends in the same bits as one that was not."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eco_fast.models import build
from eco_fast.models.weights import identity, save_weights
from tests.conftest import exit_code

STEPS = 60
_TIME_FIELDS = {"time", "speed"}


def _command(photos: Path, teacher: Path, out: Path, precision: str, *extra: str) -> list[str]:
    settings = [
        "student.options={blocks=1, channels=8}",
        "data.patch=12",
        "data.batch=4",
        "optim.clip_norm=10.0",
        "run.checkpoint_every=7",
        "run.log_every=1",
        "run.valid_every=20",
        "run.threads=1",
        f"run.precision={precision}",
    ]
    command = [sys.executable, "-m", "eco_fast", "train", "edsr-tiny", "--mode", "eco", "--steps", str(STEPS)]
    command += ["--train", str(photos), "--valid", str(photos), "--teacher", str(teacher), "--out", str(out)]
    for setting in settings:
        command += ["--set", setting]
    return [*command, *extra]


def _steps_logged(run: Path) -> int:
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b'"train"') if file.exists() else 0


def _metrics(run: Path) -> list[dict[str, object]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in _TIME_FIELDS} for record in records]


def _flatten(value: object) -> list[object]:
    if isinstance(value, dict):
        return [item for key in value for item in (key, *_flatten(value[key]))]
    if isinstance(value, list):
        return [item for entry in value for item in _flatten(entry)]
    return [value]


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    torch.manual_seed(5)
    path = tmp_path / "teacher.safetensors"
    options = {"blocks": 1, "channels": 8}
    save_weights(path, build("edsr-tiny", 2, **options).state_dict(), identity("edsr-tiny", options, 2))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_killed_and_resumed_gives_the_same_bits(photos: Path, teacher: Path, tmp_path: Path, precision: str) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    subprocess.run(_command(photos, teacher, straight, precision), check=True, capture_output=True, timeout=120)
    at = random.randrange(8, STEPS - 1)
    process = subprocess.Popen(_command(photos, teacher, killed, precision), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while _steps_logged(killed) < at and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, f"the run was over before step {at}"
    resume = _command(photos, teacher, killed, precision, "--resume")
    subprocess.run(resume, check=True, capture_output=True, timeout=120)
    last = f"checkpoints/step-{STEPS:08d}"
    for name in ("weights.safetensors", "ema.safetensors"):
        ours, theirs = load_file(straight / last / name), load_file(killed / last / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), f"{name} differs (killed at step {at})"
    ours, theirs = (_flatten(torch.load(run / last / "state.pt", weights_only=True)) for run in (straight, killed))
    assert len(ours) == len(theirs) > 20
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other) if isinstance(mine, torch.Tensor) else mine == other
    assert _metrics(straight) == _metrics(killed)


@pytest.mark.slow
def test_sigterm_saves_and_exits_with_130(photos: Path, teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = _command(photos, teacher, out, "fp32", "--set", "run.checkpoint_every=1000")
    command[command.index("--steps") + 1] = "100000"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while _steps_logged(out) < 5 and process.poll() is None:
        time.sleep(0.01)
    process.terminate()
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "go on with --resume" in message
    assert len(list((out / "checkpoints").glob("step-*"))) == 1


def _short(
    photos: Path, out: Path, steps: int, *extra: str, mode: str = "vanilla", schedule: str = "multistep"
) -> list[str]:
    settings = {
        "student.options": "{blocks=1, channels=4}",
        "data.patch": 12,
        "data.batch": 2,
        "optim.schedule": schedule,
        "optim.milestones": [4, 9],
        "optim.warmup": 3,
        "run.log_every": 5,
        "run.valid_every": 5,
        "run.threads": 1,
        "run.precision": "fp32",
        "run.out": str(out),
        "data.train": str(photos),
        "data.valid": str(photos),
    }
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return ["train", "edsr-tiny", "--mode", mode, "--steps", str(steps), *words, *extra]


def _state(run: Path, step: int) -> list[object]:
    return _flatten(torch.load(run / "checkpoints" / f"step-{step:08d}" / "state.pt", weights_only=True)["learners"])


@pytest.mark.parametrize("schedule", ["constant", "multistep"])
def test_more_steps_give_the_bits_of_a_run_that_was_planned_so(photos: Path, tmp_path: Path, schedule: str) -> None:
    straight, longer, begun = (tmp_path / name for name in ("straight", "longer", "begun"))
    assert exit_code(*_short(photos, straight, 15, schedule=schedule)) == 0
    assert exit_code(*_short(photos, longer, 10, schedule=schedule)) == 0
    shutil.copytree(longer, begun, symlinks=True)
    config = str(longer / "config.toml")
    for flags in (["--more", "5"], ["--steps", "15", "--set", "run.valid_every=5", "--resume"]):
        shutil.rmtree(longer)
        shutil.copytree(begun, longer, symlinks=True)
        assert exit_code("train", config, *flags) == 0
        for name in ("weights.safetensors", "ema.safetensors"):
            ours, theirs = (load_file(run / "checkpoints" / "step-00000015" / name) for run in (straight, longer))
            assert all(torch.equal(ours[key], theirs[key]) for key in ours)
        ours, theirs = _state(straight, 15), _state(longer, 15)
        assert len(ours) == len(theirs) > 20
        for mine, other in zip(ours, theirs, strict=True):
            assert torch.equal(mine, other) if isinstance(mine, torch.Tensor) else mine == other
        assert _metrics(straight) == _metrics(longer)
        settings = (longer / "config.toml").read_text()
        assert (straight / "config.toml").read_text() == settings.replace("longer", "straight")
    assert exit_code("train", config, "--resume") == 0  # needs no flags now


@pytest.mark.parametrize(
    ("mode", "settings", "words"),
    [
        ("vanilla", ["optim.schedule=cosine"], ["learning rate (optim.schedule=cosine) from"]),
        ("eco", ["teacher.mode=cached"], ["alpha (alpha.schedule=official) from 1.000 to 0.909"]),
        (
            "eco",
            ["optim.schedule=cosine", "alpha.schedule=linear"],
            ["learning rate", "and of alpha", "from 1.000 to 0.667"],
        ),
    ],
)
def test_schedules_that_depend_on_the_steps_need_a_word(
    photos: Path, tmp_path: Path, capsys, mode: str, settings: list[str], words: list[str]
) -> None:
    out, teacher, options = tmp_path / "run", tmp_path / "teacher.safetensors", {"blocks": 1, "channels": 4}
    save_weights(teacher, build("edsr-tiny", 2, **options).state_dict(), identity("edsr-tiny", options, 2))
    command = _short(photos, out, 10, "--teacher", str(teacher), mode=mode)
    assert exit_code(*command, *(word for setting in settings for word in ("--set", setting))) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    capsys.readouterr()
    again = ["train", str(out / "config.toml"), "--more", "5"]
    assert exit_code(*again) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "with 15 steps instead of 10 there is a jump at step 10, of" in message
    for word in [*words, "--stretch", "--init"]:
        assert word in message
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert exit_code(*again, "--stretch") == 0
    assert (out / "checkpoints" / "step-00000015").is_dir()


def test_fewer_steps_than_are_done_are_refused(photos: Path, tmp_path: Path, capsys) -> None:
    assert exit_code(*_short(photos, tmp_path / "run", 4)) == 0
    again = ["train", str(tmp_path / "run" / "config.toml")]
    assert exit_code(*again, "--resume", "--steps", "3") == 2
    assert "4 steps of" in capsys.readouterr().err
    assert exit_code(*again, "--more", "2", "--steps", "3") == 2
    assert exit_code(*again, "--more", "0") == 2
    assert "--more 0: take a number of steps above 0" in capsys.readouterr().err


def test_logs_and_validations_may_change_on_resume(photos: Path, tmp_path: Path) -> None:
    assert exit_code(*_short(photos, tmp_path / "run", 4)) == 0
    again = ["train", str(tmp_path / "run" / "config.toml"), "--more", "4"]
    assert exit_code(*again, "--set", "run.log_every=1", "--set", "run.valid_every=2") == 0
    steps = {kind: [r["step"] for r in _metrics(tmp_path / "run") if r["kind"] == kind] for kind in ("train", "valid")}
    assert [step for step in steps["train"] if step > 4] == [5, 6, 7, 8]
    assert [step for step in steps["valid"] if step > 4] == [6, 8]
