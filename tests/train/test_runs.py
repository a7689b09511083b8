"""What a run keeps, says and refuses: checkpoints, starts from other weights, memory, collapse, the log."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from eco_fast.config import load_config
from eco_fast.errors import UserError
from eco_fast.evaluate.run import evaluate
from eco_fast.models.weights import load_network
from eco_fast.train import batches, valid
from eco_fast.train.batches import Batch
from eco_fast.train.guard import CollapseGuard
from eco_fast.train.learner import Learner
from eco_fast.train.loop import Result
from eco_fast.train.run_folder import Checkpoints, RunState
from eco_fast.train.start import out_of_memory_named, train
from eco_fast.train.update import make_update

TINY = {"student.options": {"blocks": 1, "channels": 4}, "data.patch": 8, "data.batch": 2, "run.device": "cpu"}


@pytest.fixture
def photos(tmp_path: Path, rng: np.random.Generator) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((48, 48)).save(folder / f"{i}.png")
    return folder


def run(photos: Path, out: Path, **settings: object) -> Result:
    flags = {**TINY, "mode": "vanilla", "data.train": [str(photos)], "data.store": photos.parent / "store"}
    flags |= {"run.out": out, "run.steps": 6, "run.log_every": 2, "run.valid_every": 1000}
    return train(load_config("edsr-tiny", flags={**flags, **{k.replace("__", "."): v for k, v in settings.items()}}))


def records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_the_best_checkpoint_outlives_the_newer_ones(tmp_path: Path) -> None:
    config = load_config("edsr-tiny", flags={**TINY, "run.precision": "fp32", "run.compile": "off"})
    learners, checkpoints = make_update(config, nn.Conv2d(3, 12, 3)).learners, Checkpoints(tmp_path, keep_last=2)
    for step in range(1, 7):
        checkpoints.save(learners, RunState(step, torch.zeros(2), 30.0, {}), {}, best=step == 2)
    assert [path.name[-1] for path in checkpoints.all()] == ["2", "5", "6"]
    assert checkpoints.best() == tmp_path / "step-00000002"
    checkpoints.save(learners, RunState(7, torch.zeros(2), 31.0, {}), {}, best=True)
    assert [path.name[-1] for path in checkpoints.all()] == ["6", "7"]
    assert checkpoints.load(checkpoints.all()[-1], learners).best == 31.0


def test_a_checkpoint_holds_every_learner(tmp_path: Path) -> None:
    """Weights, averages, optimisers and guards of two networks, each with its own settings, come back bit for bit."""
    config = load_config("edsr-tiny", flags={**TINY, "run.precision": "fp16", "run.compile": "off"})
    other = config.optim.model_copy(update={"name": "lamb", "ema": 0.0})

    def learners(seed: int) -> dict[str, Learner]:
        torch.manual_seed(seed)
        return {
            "student": Learner(nn.Conv2d(3, 12, 3), config.optim, config.guard, config.run),
            "discriminator": Learner(nn.Linear(4, 1), other, config.guard, config.run),
        }

    def tensors(learners: dict[str, Learner]) -> list[torch.Tensor]:
        found: list[torch.Tensor] = []
        for learner in learners.values():
            state = learner.state
            assert state.scale is not None and state.good is not None
            found += [*learner.network.parameters(), *learner.averaged.parameters()]
            found += [t for moments in learner.optimizer.state_dict()["state"].values() for t in moments.values()]
            found += [state.last, state.skipped, state.in_a_row, state.scale, state.good]
        return found

    trained, fresh = learners(0), learners(1)
    for step in range(3):
        for learner in trained.values():
            learner.schedule(step)
            loss = sum((p.square().sum() for p in learner.network.parameters()), torch.zeros(()))
            loss.backward()
            learner.parameters.gather()
            learner.apply(loss.detach())
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    saved = checkpoints.save(trained, RunState(3, torch.zeros(2), None, {}), {}, best=False)
    assert {path.name for path in saved.iterdir()} == {
        "weights.safetensors",
        "ema.safetensors",
        "discriminator-weights.safetensors",
        "state.pt",
    }
    checkpoints.load(saved, fresh)
    assert all(torch.equal(a, b) for a, b in zip(tensors(trained), tensors(fresh), strict=True))


def test_a_checkpoint_of_another_format_is_refused(photos: Path, tmp_path: Path) -> None:
    """By name, before anything else of its run is looked at: its settings may be of another time too."""
    run(photos, tmp_path / "run")
    config = tmp_path / "run" / "config.toml"
    state = tmp_path / "run" / "checkpoints" / "step-00000006" / "state.pt"
    content = torch.load(state, weights_only=True)
    del content["format"]
    torch.save(content, state)
    with pytest.raises(UserError, match=r"state\.pt has format 1, this version of eco-fast resumes format 2; finish"):
        train(load_config(config), resume=True)
    kept = load_config(config)
    config.write_text("[data]\nan_old_option = true\n")
    with pytest.raises(UserError, match="has format 1"):
        train(kept, resume=True)


def test_a_run_marks_its_best_validation(photos: Path, tmp_path: Path) -> None:
    settings = {"data__valid": photos, "run__valid_every": 2, "run__keep_last": 1}
    run(photos, tmp_path / "run", **settings)
    valid = {r["step"]: r["psnr_y"] for r in records(tmp_path / "run") if r["kind"] == "valid" and r["step"]}
    best = max(valid, key=lambda step: valid[step])
    assert (tmp_path / "run" / "checkpoints" / "best").readlink() == Path(f"step-{best:08d}")
    load_network(tmp_path / "run" / "checkpoints" / "best")


def test_training_and_validating_on_one_folder_is_said(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(photos, tmp_path / "run", data__valid=photos)
    assert f"{photos} is trained on and validated on" in capsys.readouterr().out


def test_a_run_that_is_complete_stays_as_it_is(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(photos, tmp_path / "run")
    metrics = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    again = train(load_config(tmp_path / "run" / "config.toml"), resume=True)
    assert again.checkpoint == first.checkpoint
    assert "all 6 steps were done before" in capsys.readouterr().out
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == metrics


def test_x4_starts_from_x2(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(photos, tmp_path / "x2").checkpoint
    capsys.readouterr()
    run(photos, tmp_path / "x4", scale=4, data__patch=8, student__init=tmp_path / "x2")
    assert "fresh" in capsys.readouterr().out
    body = load_network(first).state_dict()["head.0.weight"]
    again = load_network(run(photos, tmp_path / "same", student__init=first, optim__lr=1e-12).checkpoint)
    torch.testing.assert_close(again.state_dict()["head.0.weight"], body, atol=1e-6, rtol=0)


def test_the_log_holds_a_budget(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "run")
    lines = [r for r in records(tmp_path / "run") if r["kind"] == "train"]
    assert [r["step"] for r in lines] == [2, 4, 6]
    for record in lines:
        speed = record["speed"]
        assert {"student", "optimiser", "other"} <= speed["budget"].keys() and min(speed["budget"].values()) >= 0
        assert sum(speed["budget"].values()) == pytest.approx(1, abs=1e-3)  # nothing runs side by side here
        assert speed["tflops"] > 0 and record["gradient_norm"] > 0
    assert lines[0]["speed"]["budget"]["data"] > 0  # of the batch after it; the last step makes none
    assert lines[-1]["speed"]["batches"] == {"lr": 6, "hr": 6}


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("FIND was unable to find an engine to execute this computation"),  # no memory for its work space
        MemoryError(),
    ],
)
def test_full_memory_is_one_line(error: Exception) -> None:
    config = load_config("edsr-tiny", flags=TINY)
    line = r"data\.batch=2 and data\.patch=8.*optim\.accumulate=2"
    with pytest.raises(UserError, match=line) as caught, out_of_memory_named(config):
        raise error
    assert "\n" not in str(caught.value)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shape"), out_of_memory_named(load_config("edsr-tiny")):
        raise RuntimeError("shape mismatch")


def test_a_real_allocation_that_fails() -> None:
    with pytest.raises(UserError, match="out of memory"), out_of_memory_named(load_config("edsr-tiny", flags=TINY)):
        torch.empty(2**62, dtype=torch.uint8)


class Grey(nn.Module):
    """A student that answers with one colour, or nearly."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor(share))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 + self.share * (x - 0.5)


def test_collapse_guard(rng: np.random.Generator) -> None:
    x = torch.from_numpy(rng.random((4, 3, 8, 8), dtype=np.float32))
    guard = CollapseGuard(steps=100)
    for step in (1, 2, 3):
        guard.check(guard.look(step, Grey(0.5), x).item(), step, "")
    guard.check(guard.look(4, Grey(0.001), x).item(), 4, "")
    spread = guard.look(5, Grey(0.001), x).item()
    with pytest.raises(UserError, match=r"nearly one colour at step 5: .* the last checkpoint is here; check"):
        guard.check(spread, 5, "the last checkpoint is here")


def test_collapse_guard_is_for_the_start(rng: np.random.Generator) -> None:
    x = torch.from_numpy(rng.random((4, 3, 8, 8), dtype=np.float32))
    guard = CollapseGuard(steps=100)
    for step in range(25, 40):
        spread = guard.look(step, Grey(0.0), x)
        assert spread.isnan()
        guard.check(spread.item(), step, "")


def test_a_run_that_collapses_stops(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eco_fast.train.inputs.load_student", lambda config, display: Dead())
    with pytest.raises(UserError, match="nearly one colour"):
        run(photos, tmp_path / "run", run__steps=40, run__log_every=1, run__precision="fp32")


class Dead(nn.Module):
    """Its units answer nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.colour = nn.Parameter(torch.tensor([0.2, 0.5, 0.9]).view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.colour * torch.ones((len(x), 3, 2 * x.shape[2], 2 * x.shape[3]))


def test_lr_images_of_ones_own_are_validated_on(photos: Path, tmp_path: Path) -> None:
    """`data.valid_lr`: black LR images give another figure than the bicubic of HR."""
    black = tmp_path / "black"
    black.mkdir()
    for file in photos.iterdir():
        Image.new("RGB", (24, 24)).save(black / file.name)
    psnr = []
    for name, own in (("bicubic", {}), ("own", {"data__valid_lr": black})):
        run(photos, tmp_path / name, data__valid=photos, **own)
        psnr.append(records(tmp_path / name)[-1]["psnr_y"])
    assert abs(psnr[0] - psnr[1]) > 0.1


def test_tensorboard_gets_every_number(photos: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(photos, tmp_path / "run", run__tensorboard=True, data__valid=photos)
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    names = set(events.Tags()["scalars"])
    assert {"train/loss", "train/lr", "train/speed/patches_per_second", "train/speed/budget/student"} <= names
    assert [event.step for event in events.Scalars("valid/photos/psnr_y")] == [0, 6]


def test_tensorboard_is_missing(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        run(photos, tmp_path / "run", run__tensorboard=True)


def test_nan_from_some_step_on(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run ends with a line that names a checkpoint, which loads, and whose weights are of before."""
    made, steps = batches.make_batch, iter(range(1000))

    def broken(*arguments: object) -> Batch:
        batch = made(*arguments)
        return batch if next(steps) < 8 else batch._replace(x=batch.x * torch.nan)

    monkeypatch.setattr(batches, "make_batch", broken)
    settings = {"run__steps": 100, "run__checkpoint_every": 5, "guard__limit": 4}
    with pytest.raises(UserError, match=r"updates before step 12 were skipped.*the last checkpoint is .*step-00000010"):
        run(photos, tmp_path / "run", **settings)
    network = load_network(tmp_path / "run")
    assert all(tensor.isfinite().all() for tensor in network.state_dict().values())


def test_precisions_are_kept_and_said(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of validation is used; that of the teacher is recorded, and a resumed run goes on with it."""
    used: list[str] = []
    monkeypatch.setattr(valid, "evaluate", lambda *args, **kwargs: used.append(kwargs["precision"]) or evaluate(*args))
    teacher = run(photos, tmp_path / "teacher", data__valid=photos).checkpoint
    settings = {"mode": "eco", "teacher__file": teacher, "data__valid": photos, "run__valid_precision": "bf16"}
    run(photos, tmp_path / "run", **settings)
    assert used == ["fp32", "fp32", "bf16", "bf16"]
    said = capsys.readouterr().out
    assert said.count("validation in bf16") == 1 and said.count("centroids in fp32, rounded to 8 bit\n") == 1
    recorded = load_config(tmp_path / "run" / "config.toml")
    assert (recorded.run.valid_precision, recorded.teacher.precision) == ("bf16", "fp32")
    again = load_config(tmp_path / "run" / "config.toml", ["teacher.precision=auto", "run.valid_precision=auto"])
    assert train(again, resume=True).checkpoint.name == "step-00000006"
    with pytest.raises(UserError, match=r"teacher\.precision \(bf16 here, fp32 there\)"):
        train(load_config(tmp_path / "run" / "config.toml", ["teacher.precision=bf16"]), resume=True)
