"""Bad input: one line that names the thing and how to fix it, exit code 2, nothing overwritten."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eco_fast.cli import main
from eco_fast.models import build
from eco_fast.models.weights import identity, save_weights
from eco_fast.train.run_folder import RunFolder
from eco_fast.train.world import World

TINY = ["--set", "student.options={blocks=1, channels=4}", "--set", "data.patch=12", "--set", "data.batch=2"]


def _write_network(path: Path, name: str = "edsr-tiny", scale: int = 2) -> Path:
    options = {"blocks": 1, "channels": 4} if name.startswith("edsr") else {}
    save_weights(path, build(name, scale, **options).state_dict(), identity(name, options, scale))
    return path


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]):
    """Run a command that must fail, and return its one line."""

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        error = capsys.readouterr().err
        assert stop.value.code == 2, error
        assert error.count("\n") == 1, f"more than one line: {error}"
        assert error.startswith("error: ")
        assert "Traceback" not in error
        return error

    return run


def _train(out: Path, *extra: object) -> list[object]:
    return ["train", "edsr-tiny", "--mode", "vanilla", "--steps", 2, "--out", out, *TINY, *extra]


def _succeed(*arguments: object) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 0


def test_missing_training_folder(refused, tmp_path: Path) -> None:
    assert "no-such-folder" in refused(*_train(tmp_path / "run", "--train", tmp_path / "no-such-folder"))


def test_empty_training_folder(refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(*_train(tmp_path / "run", "--train", tmp_path / "empty"))


def test_no_training_folder(refused, tmp_path: Path) -> None:
    assert "--train" in refused(*_train(tmp_path / "run"))


@pytest.mark.parametrize("source", ["mapped", "files"], indirect=True)
def test_other_files_among_images_are_counted(
    refused, photos: Path, tmp_path: Path, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By every command that reads folders; a README is no fault, what may be a mistake is one under --strict."""
    (photos / "README.md").write_text("Photographs of mine.")
    (photos / "notes.txt").write_text("To be sorted.")
    note = "2 other files among the images, passed over: README.md, notes.txt"
    weights = _write_network(tmp_path / "w.safetensors")
    training = ["--train", photos, "--set", f"data.source={source}", "--strict"]
    for command in (
        _train(tmp_path / "run", *training, "--valid", photos),
        ["prepare", photos, "--scale", 2, "--out", tmp_path / "store"],
        ["eval", weights, "--data", photos, "--strict"],
        ["upscale", photos, "--weights", weights, "--out", tmp_path / "large", "--strict"],
    ):
        _succeed(*command)
        shown = capsys.readouterr().out
        assert shown.count(note) == (2 if command[0] == "train" else 1), shown
    (photos / "more.zip").write_bytes(b"PK")
    assert "1 archive file among the images, not unpacked: more.zip" in refused(*_train(tmp_path / "other", *training))


@pytest.mark.parametrize("content", [b"", b"not a png", None])
@pytest.mark.parametrize("command", ["train", "prepare", "eval"])
def test_unreadable_image(refused, photos: Path, tmp_path: Path, command: str, content: bytes | None) -> None:
    """A set must be whole; `upscale` alone goes on."""
    file = photos / "image1.png"
    file.write_bytes(file.read_bytes()[:900] if content is None else content)
    arguments: dict[str, list[object]] = {
        "train": _train(tmp_path / "run", "--train", photos),
        "prepare": ["prepare", photos, "--scale", 2, "--out", tmp_path / "store"],
        "eval": ["eval", _write_network(tmp_path / "w.safetensors"), "--data", photos],
    }
    assert "image1.png" in refused(*arguments[command])


@pytest.mark.parametrize("command", ["train", "prepare"])
def test_all_unreadable_images_are_named_at_once(refused, photos: Path, tmp_path: Path, command: str) -> None:
    for name in ("image0.png", "image2.png"):
        (photos / name).write_bytes((photos / name).read_bytes()[:900])
    Image.fromarray(np.full((64, 64), 40_000, dtype=np.uint16)).save(photos / "deep.png")
    prepare = ["prepare", photos, "--scale", 2, "--out", tmp_path / "store"]
    message = refused(*(prepare if command == "prepare" else _train(tmp_path / "run", "--train", photos)))
    assert "3 images cannot be used: " in message
    assert all(f"{photos / name}" in message for name in ("image0.png", "image2.png", "deep.png"))
    assert "image1.png" not in message


def test_16_bit_image(refused, photos: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((64, 64), 40_000, dtype=np.uint16)).save(photos / "deep.png")
    message = refused(*_train(tmp_path / "run", "--train", photos))
    assert "deep.png" in message and "8 bits per channel" in message


@pytest.mark.parametrize("fault", ["name", "size"])
@pytest.mark.parametrize("command", ["train", "eval"])
def test_lr_that_does_not_match_hr(refused, photos: Path, tmp_path: Path, fault: str, command: str) -> None:
    lr = tmp_path / "lr"
    lr.mkdir()
    for file in photos.iterdir():
        image = Image.open(file)
        wrong = file.name == "image2.png"
        size = (image.width // 2 + (wrong and fault == "size"), image.height // 2)
        image.resize(size).save(lr / ("other.png" if wrong and fault == "name" else file.name))
    if command == "train":
        message = refused(*_train(tmp_path / "run", "--train", photos, "--set", f"data.train_lr={lr}"))
    else:
        weights = _write_network(tmp_path / "w.safetensors")
        message = refused("eval", weights, "--data", photos, "--lr", lr)
    assert "image2" in message


def test_unknown_model(refused, photos: Path, tmp_path: Path) -> None:
    message = refused(*_train(tmp_path / "run", "--train", photos, "--set", "student.name=edsr-tinny"))
    assert "edsr-tinny" in message and "edsr-tiny" in message.replace("edsr-tinny", "")


def test_unknown_mode(refused, photos: Path, tmp_path: Path) -> None:
    message = refused("train", "edsr-tiny", "--mode", "ecco", "--train", photos, "--out", tmp_path / "run")
    assert message.startswith("error: --mode ecco: take one of vanilla, kd") and "did you mean eco?" in message


def test_unknown_key_names_the_nearest(refused, photos: Path, tmp_path: Path) -> None:
    assert "did you mean data.batch?" in refused(*_train(tmp_path / "run", "--set", "data.bacth=3"))


def test_missing_teacher(refused, photos: Path, tmp_path: Path) -> None:
    message = refused(*_train(tmp_path / "run", "--train", photos, "--mode", "eco"))
    assert "--teacher" in message


def test_teacher_of_another_scale(refused, photos: Path, tmp_path: Path) -> None:
    teacher = _write_network(tmp_path / "teacher.safetensors", scale=4)
    message = refused(*_train(tmp_path / "run", "--train", photos, "--mode", "eco", "--teacher", teacher))
    assert "teacher.safetensors" in message and "x4" in message and "x2" in message


def test_teacher_of_another_network(refused, photos: Path, tmp_path: Path) -> None:
    teacher = _write_network(tmp_path / "teacher.safetensors")
    extra = ["--mode", "eco", "--teacher", teacher, "--set", "teacher.name=rlfn"]
    message = refused(*_train(tmp_path / "run", "--train", photos, *extra))
    assert "teacher.safetensors" in message and "rlfn" in message


def test_checkpoint_of_another_network(refused, photos: Path, tmp_path: Path) -> None:
    weights = _write_network(tmp_path / "w.safetensors")
    assert "rlfn" in refused("eval", weights, "--data", photos, "--network", "rlfn")


def test_bare_weights_of_an_unknown_network(refused, photos: Path, tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(3, 3, 3, 3)}, tmp_path / "odd.pth")
    message = refused("eval", tmp_path / "odd.pth", "--data", photos)
    assert "odd.pth fits none of" in message


def test_missing_checkpoint(refused, photos: Path, tmp_path: Path) -> None:
    assert "gone.pth" in refused("eval", tmp_path / "gone.pth", "--data", photos)


def test_output_that_cannot_be_written(refused, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    message = refused(*_train(tmp_path / "file" / "run", "--train", photos))
    assert str(tmp_path / "file") in message and "--out" in message


def test_resume_without_a_checkpoint(refused, photos: Path, tmp_path: Path) -> None:
    message = refused(*_train(tmp_path / "run", "--train", photos, "--resume"))
    assert "no checkpoint" in message and "--resume" in message
    assert not (tmp_path / "run").exists()


def _without_checkpoints(out: Path, photos: Path) -> list[object]:
    """A run without checkpoints: killed after some steps, as far as its folder shows."""
    command = _train(out, "--train", photos)
    _succeed(*command)
    shutil.rmtree(out / "checkpoints")
    return command


@pytest.mark.parametrize("fault", ["images", "mode", "device", "optimiser", "teacher"])
def test_a_start_that_fails_leaves_nothing_in_the_way(refused, photos: Path, tmp_path: Path, fault: str) -> None:
    wrong = {
        "images": ["--train", tmp_path / "gone"],
        "mode": ["--train", photos, "--mode", "eko"],
        "device": ["--train", photos, "--set", "run.compile=off", "--device", "cuda"],
        "optimiser": ["--train", photos, "--set", "optim.name=adm"],
        "teacher": ["--train", photos, "--mode", "eco", "--teacher", tmp_path / "gone"],
    }[fault]
    if fault == "device" and torch.cuda.is_available():
        pytest.skip("a GPU is there")
    refused(*_train(tmp_path / "runs" / "run", *wrong))
    assert not (tmp_path / "runs" / "run").exists()
    _succeed(*_train(tmp_path / "runs" / "run", "--train", photos))


def test_a_run_that_fails_in_its_first_step_leaves_nothing_in_the_way(
    refused, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    out.mkdir()  # it was there, so it stays

    def full(*_: object) -> None:
        assert (out / "config.toml").exists()
        raise torch.OutOfMemoryError

    monkeypatch.setattr("eco_fast.train.loop.Loop.advance", full)
    assert "out of memory" in refused(*_train(out, "--train", photos))
    assert not any(out.iterdir())


def test_what_a_killed_start_has_left_is_taken(refused, photos: Path, tmp_path: Path) -> None:
    """No step was done: neither --force nor --resume is needed, and `--resume` says so."""
    out = tmp_path / "run"
    command = _without_checkpoints(out, photos)
    first, *_ = (out / "metrics.jsonl").read_text().splitlines()
    (out / "metrics.jsonl").write_text(json.dumps({**json.loads(first), "step": 0}) + "\n")
    (out / "train.log").write_text("some lines\n")
    assert "leave --resume out to start there" in refused(*command, "--resume")
    _succeed(*command)


def test_a_run_killed_before_its_first_checkpoint_says_what_to_do(refused, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = _without_checkpoints(out, photos)
    before = (out / "metrics.jsonl").read_bytes()
    assert "a run that ended before its first checkpoint; start there all the same with --force" in refused(*command)
    assert "give --force instead of --resume" in refused(*command, "--resume")
    assert (out / "metrics.jsonl").read_bytes() == before
    _succeed(*command, "--force")


@pytest.mark.parametrize("name", ["notes.txt", "config.toml"])
def test_files_of_others_are_not_taken_for_a_run(refused, photos: Path, tmp_path: Path, name: str) -> None:
    """A recipe that somebody wrote is no resolved configuration, though it has its name."""
    out = tmp_path / "run"
    out.mkdir()
    (out / name).write_text("# mine\nscale = 2\n")
    command = _train(out, "--train", photos)
    assert "--force" in refused(*command)
    refused(*_train(out, "--train", tmp_path / "gone", "--force"))
    assert (out / name).read_text() == "# mine\nscale = 2\n"


def test_two_runs_do_not_share_a_folder(refused, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with RunFolder(out, 3).claimed(World()):
        assert "another run is being written to" in refused(*_train(out, "--train", photos))
    _succeed(*_train(out, "--train", photos))


def test_another_run_is_not_overwritten(refused, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    _succeed(*_train(out, "--train", photos))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert before
    message = refused(*_train(out, "--train", photos))
    assert "--resume" in message and "--force" in message
    message = refused(*_train(out, "--train", photos, "--resume", "--set", "optim.lr=0.5"))
    assert "optim.lr" in message
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    _succeed(*_train(out, "--train", photos, "--force"))


def test_force_with_bad_input_keeps_the_old_run(refused, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    _succeed(*_train(out, "--train", photos))
    refused(*_train(out, "--train", tmp_path / "gone", "--force"))
    assert (out / "checkpoints" / "step-00000002" / "weights.safetensors").exists()


def test_grey_alpha_odd_sizes_and_small_images_are_noted(photos: Path, tmp_path: Path, capsys, refused) -> None:
    Image.new("L", (64, 64), 80).save(photos / "grey.png")
    Image.new("RGBA", (64, 64), (10, 20, 30, 128)).save(photos / "alpha.png")
    Image.new("RGB", (65, 63)).save(photos / "odd.png")
    for i in range(4):
        Image.new("RGB", (16, 64)).save(photos / f"small{i}.png")
    _succeed(*_train(tmp_path / "run", "--train", photos))
    printed = re.sub(r"\s+", " ", capsys.readouterr().out)
    for name in ("grey.png", "alpha.png", "odd.png", "small0.png", "small1.png", "small2.png"):
        assert name in printed
    assert "small3.png" not in printed and "4 " in printed
    assert "images 7, " in printed
    message = refused(*_train(tmp_path / "strict", "--train", photos, "--strict"))
    assert "png" in message


def test_no_image_left(refused, tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "small" / "a.png")
    assert "data.patch" in refused(*_train(tmp_path / "run", "--train", tmp_path / "small"))


def test_loss_that_is_not_finite_keeps_the_last_checkpoint(refused, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    extra = ["--set", "optim.lr=1e30", "--set", "run.log_every=1", "--set", "optim.schedule=constant"]
    command = _train(out, "--train", photos, *extra, "--set", "guard.limit=5")
    command[command.index("--steps") + 1] = 50
    message = refused(*command)
    assert "were skipped" in message and "optim.lr" in message


def test_full_disk_keeps_older_checkpoints(refused, photos: Path, tmp_path: Path, monkeypatch) -> None:
    from eco_fast.train import run_folder

    def full(path: Path, *_: object) -> None:
        if "00000002" in str(path):
            raise OSError(28, "No space left on device")
        save_weights(path, *_)

    monkeypatch.setattr(run_folder, "save_weights", full)
    message = refused(*_train(tmp_path / "run", "--train", photos, "--set", "run.checkpoint_every=1"))
    assert "No space left" in message and "--resume" in message
    kept = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert kept == ["step-00000001"]
