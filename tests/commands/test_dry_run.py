"""`train --dry-run`, and the recipes of the package."""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eco_fast.cli import main
from eco_fast.commands import dry_run
from eco_fast.commands.dry_run import KeptLines, Sizes, Trial, Work, measure, memory_line, time_line
from eco_fast.config import TeacherConfig, load_config
from eco_fast.data.make_store import prepare
from eco_fast.models import build
from eco_fast.train import inputs
from eco_fast.train.machine import resolve
from eco_fast.train.teacher import freeze, load_teacher, store_teacher
from eco_fast.train.update import Update, make_update
from tests.train.test_graph import FakeCuda, graphs_on

PAPER = {"eco-edsr": 3.2e-3, "eco-edsr-baseline": 8e-4, "eco-rcan": 1.6e-3}  # recipe -> learning rate


TINY = ["--set", "student.options={blocks=1, channels=4}", "--set", "data.patch=8"]


@pytest.fixture
def said(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """The lines of a dry run of a small network on the photographs, or on others; it writes nothing."""

    def run(*options: object, train: Path = photos) -> list[str]:
        before = set(tmp_path.rglob("*"))
        command = ["train", "edsr-tiny", "--train", train, "--out", tmp_path / "run", "--dry-run", *TINY, *options]
        with pytest.raises(SystemExit) as end:
            main([str(each) for each in command])
        assert end.value.code == 0 and set(tmp_path.rglob("*")) == before
        return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    file = tmp_path / "teacher.safetensors"
    save_file(dict(build("edsr-tiny", 2).state_dict()), file)
    return file


def test_what_matters_comes_first_and_the_settings_last(photos: Path, said: Callable[..., list[str]]) -> None:
    steps = ["--set", "run.steps=10", "--set", "run.valid_every=4"]
    what, time, memory, empty, how, *rest = said("--mode", "vanilla", "--valid", photos, *steps)
    assert what.startswith("would train edsr-tiny x2 (") and "trained parameters), mode vanilla, on 4 images" in what
    assert what.endswith("10 steps of 16 patches of 8 LR pixels a side")
    assert re.match(r"time: about [\d.]+ m?s, until \d{4}-\d\d-\d\d \d\d:\d\d if it starts now \(", time)
    assert "for 10 steps of " in time and "for 4 validations of " in time  # steps 0, 4, 8, 10
    assert re.search(r"memory: [\d.]+ [MG]B for a step, [\d.]+ [kM]B for the images; .* free on the cpu: fits", memory)
    assert not empty and "measured on cpu" in how
    settings = tomllib.loads("\n".join(rest))
    assert settings["mode"] == "vanilla" and settings["run"]["precision"] in ("fp32", "bf16")


def test_the_sum_is_of_all_parts() -> None:
    parts = [Work(58 * 86_400, "for a"), Work(0, "b is there"), Work(0.6 * 86_400, "for c")]
    line = time_line(parts)
    assert line.startswith("time: about 58.6 days, until ") and line.endswith(
        "(58.0 days for a, b is there, 14.4 h for c)"
    )


def test_a_teacher_takes_time_until_its_centroids_are_there(
    photos: Path, teacher: Path, tmp_path: Path, said: Callable[..., list[str]]
) -> None:
    eco = ["--mode", "eco", "--teacher", teacher]
    assert "for centroids of 4 images" in said(*eco)[1]
    network = load_teacher(TeacherConfig(file=teacher), 2)
    prepare([photos], [2], tmp_path / "store", teacher=store_teacher(network, 2, "fp32", "cpu"))
    assert f"centroids are in {tmp_path / 'store'}" in said(*eco, train=tmp_path / "store")[1]


def test_an_online_teacher_is_part_of_the_step(teacher: Path, said: Callable[..., list[str]]) -> None:
    time = said("--mode", "eco", "--teacher", teacher, "--set", "teacher.mode=online")[1]
    assert "with the teacher's work" in time and "centroids" not in time


@pytest.mark.parametrize("refused", [(), ("this update", "the work of the teacher")], ids=["captured", "refused"])
def test_a_gpu_is_timed_with_the_graphs_of_a_run(monkeypatch: pytest.MonkeyPatch, refused: tuple[str, ...]) -> None:
    """Without them the host may take several times as long; the steps that are measured replay."""
    settings = ["run.device=cpu", "run.graph=true", "teacher.precision=fp32", *TINY[1::2]]
    config = resolve(load_config("edsr-tiny", settings))
    monkeypatch.setattr(dry_run, "why_not", lambda *_: None)
    made: list[Update] = []
    monkeypatch.setattr(dry_run, "make_update", lambda *given: made.append(make_update(*given)) or made[-1])
    cuda = FakeCuda(lambda: [made[0].learners["student"]], refused)
    notes = KeptLines()
    with graphs_on(cuda):
        seconds, _ = measure(config, build("edsr-tiny", 2), notes, freeze(build("edsr-tiny", 2)))
    assert seconds > 0
    # Of update and teacher: a capture for each of two slots, replayed at once, then three steps.
    assert (cuda.captures, cuda.replays) == ((0, 0) if refused else (2 * 2, 2 * (2 + 3)))
    assert [line.partition(" (")[0] for line in notes.lines] == [
        f"no CUDA graph can hold {what}" for what in refused[::-1]
    ]


def test_memory_that_is_not_there_is_said_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "free_memory", lambda device: 10 << 30)
    config = resolve(load_config("edsr-tiny", ["run.device=cpu"]))
    images = Sizes(torch.full((100,), 1000), torch.full((100,), 1000))  # 375 MB at x2
    trial = Trial(1, images, False, [], 1 << 30)
    assert memory_line(config, trial, 2 << 30).endswith("375 MB for the images; 2.15 GB free on the cpu: fits")
    assert memory_line(config, trial, 12 << 26).endswith("DOES NOT FIT; use --set optim.accumulate=2")
    assert memory_line(config, trial, 17 << 26).endswith("DOES NOT FIT; use --set data.source=mapped")
    monkeypatch.setattr(inputs, "free_memory", lambda device: 1 << 30)
    assert "the images, 375 MB, stay on disk" in memory_line(config, trial, 17 << 26)


def test_a_store_is_looked_at(photos: Path, tmp_path: Path, said: Callable[..., list[str]]) -> None:
    prepare([photos], [2], tmp_path / "store")
    assert "on 4 images" in said("--mode", "vanilla", train=tmp_path / "store")[0]


def test_a_missing_teacher_is_found(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["train", "edsr-tiny", "--mode", "eco", "--train", str(photos), "--dry-run"])
    assert end.value.code == 2 and "needs a teacher" in capsys.readouterr().err


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", PAPER)
def test_recipes_of_the_paper(name: str, scale: int) -> None:
    """The values of Lee & Heo 2024, in the units of a loss on 0-255."""
    config = load_config(name, flags={"scale": scale})
    optim = config.optim
    assert (f"eco-{config.student.name}", config.scale, config.mode) == (name, scale, "eco")
    assert (config.data.patch, config.data.batch, config.run.steps) == (48, 128, 125_000)
    assert (optim.name, optim.betas, optim.eps, optim.weight_decay) == ("lamb", (0.9, 0.99), 1e-6, 0)
    assert (optim.clip_value, optim.clip_norm, optim.warmup) == (0.1, 0, 0)
    assert (config.guard.skip_factor, config.guard.first_loss) == (5, 100)
    assert (config.loss.kind, config.loss.scale, config.alpha.schedule) == ("l1", 255, "official")
    assert optim.lr == PAPER[name]
    if name == "eco-edsr-baseline":
        assert (optim.schedule, optim.milestones, optim.gamma) == ("multistep", [25_000, 50_000, 75_000, 100_000], 0.5)
    else:
        assert optim.schedule == "cosine"
