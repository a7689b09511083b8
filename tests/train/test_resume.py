"""A run that is killed and resumed ends in the same bits as one that was not."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

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
    from eco_fast.models import build
    from eco_fast.models.weights import identity, save_weights

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
