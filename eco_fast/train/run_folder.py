"""The folder of a run: `config.toml`, `metrics.jsonl`, `checkpoints/`. No run is overwritten by accident."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from eco_fast.config import Config, config_toml, load_config
from eco_fast.data.notes import first_names
from eco_fast.errors import UserError
from eco_fast.files import write_atomically, writing
from eco_fast.models.weights import load_into, save_weights
from eco_fast.train.learner import Learner
from eco_fast.train.world import World

_PROBE = ".probe"
_OURS = {"config.toml", "metrics.jsonl", "train.log", "tensorboard", "checkpoints", _PROBE}  # in the folder of a run
_BEST, _STUDENT = "best", "student"
_FORMAT = 2  # of state.pt; 1 had no number, and one network


class RunState(NamedTuple):
    """Where a checkpoint stands."""

    step: int  # updates done
    window: Tensor  # since the last line of the log: sum of the accepted losses, and their number; fp32 (2,)
    best: float | None  # highest validation PSNR-Y so far
    environment: Mapping[str, str]


class RunFolder:
    """Paths and files of one run."""

    def __init__(self, path: Path, keep_last: int) -> None:
        self.path = path
        self.config_file = path / "config.toml"
        self.metrics_file = path / "metrics.jsonl"
        self.checkpoints = Checkpoints(path / "checkpoints", keep_last)

    def refuse(self, *, resume: bool, force: bool) -> None:
        """Make sure that this run may be written here, before any work is done. Nothing is written.

        What a start that failed has left is in nobody's way.

        Raises:
            UserError: The folder holds something and neither `resume` nor `force` is given, or it has no checkpoint to
                resume from.
        """
        if resume and force:
            raise UserError("--resume and --force exclude each other; give one of them")
        free = not self.path.is_dir() or self._holds_no_more_than_a_start()
        if self.checkpoints.latest() is not None:
            if not resume and not force:
                raise UserError(
                    f"{self.path} holds a run; continue it with --resume, replace it with --force, or choose --out"
                )
        elif resume:
            way = "leave --resume out to start" if free else "give --force instead of --resume to start anew"
            raise UserError(f"{self.path} has no checkpoint to resume from; {way} there")
        elif not free and not force:
            foreign = first_names(sorted(path.name for path in self.path.iterdir() if path.name not in _OURS))
            held = f"other files ({foreign})" if foreign else "a run that ended before its first checkpoint"
            raise UserError(f"{self.path} holds {held}; start there all the same with --force, or choose --out")

    @contextmanager
    def claimed(self, world: World) -> Iterator[None]:
        """Inside, the first process of a run may write here. Nothing is left of a run that fails before its first step.

        Raises:
            UserError: The folder can't be written, or another run is being written there.
        """
        with ExitStack() as stack:
            with world.agree():
                if world.leads:
                    made = not self.path.exists()
                    stack.enter_context(self._locked())
            try:
                yield
            except BaseException:
                if world.leads and self._holds_no_more_than_a_start():
                    for path in self.path.iterdir():
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
                    if made:
                        self.path.rmdir()
                raise

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other runs out. The lock ends with the process, however that ends."""
        with writing(self.path, "choose another folder with --out"):
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / _PROBE).touch()
            (self.path / _PROBE).unlink()
            descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise UserError(f"another run is being written to {self.path}; wait for it, or choose --out") from error
        except OSError:
            pass  # a file system without locks on folders
        try:
            yield
        finally:
            os.close(descriptor)

    def _holds_no_more_than_a_start(self) -> bool:
        """Whether all that lies here is what a run writes before its first step, and no recipe of somebody's own."""
        if self.checkpoints.latest() is not None or any(path.name not in _OURS for path in self.path.iterdir()):
            return False
        config = self.config_file
        lines = self.metrics_file.read_text("utf-8").splitlines() if self.metrics_file.exists() else []
        try:
            begun = any(json.loads(line)["step"] > 0 for line in lines)
            return not begun and (not config.exists() or config_toml(load_config(config)) == config.read_text("utf-8"))
        except (UserError, ValueError):  # by another version, or cut off
            return False

    def previous_config(self) -> Config:
        """The resolved configuration that the run was started with, if this version can go on with the run.

        Raises:
            UserError: Its newest checkpoint is damaged, or of another format; or the configuration is.
        """
        latest = self.checkpoints.latest()
        if latest is not None:  # first of all: an older version had other settings too
            _load_state(latest, mmap=True)
        return load_config(self.config_file)

    def start(self, config: Config) -> None:
        """Remove an older run (`refuse` has asked for --force) and write the resolved configuration."""
        shutil.rmtree(self.checkpoints.path, ignore_errors=True)
        self.metrics_file.unlink(missing_ok=True)
        self.keep(config)

    def keep(self, config: Config) -> None:
        """Write the resolved configuration."""
        write_atomically(self.config_file, config_toml(config).encode())

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line of metrics."""
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def drop_metrics_after(self, step: int) -> None:
        """Remove the lines past a checkpoint that the run goes back to, and a half-written last one."""
        if not self.metrics_file.exists():
            return
        lines = self.metrics_file.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        write_atomically(self.metrics_file, "".join(kept).encode())


class Checkpoints:
    """The checkpoints of one run: `step-00001000/` with `weights.safetensors`, `ema.safetensors`, `state.pt`.

    Those are of the student; the weights of another learner are in files with its name in front. A link `best` names
    the checkpoint with the highest validation PSNR-Y.
    """

    def __init__(self, path: Path, keep_last: int) -> None:
        self.path = path
        self.keep_last = keep_last

    def all(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(self.path.glob("step-*"))

    def latest(self) -> Path | None:
        """The newest complete checkpoint."""
        return next(reversed(self.all()), None)

    def done(self) -> int:
        """The step of the newest complete checkpoint, 0 if there is none."""
        latest = self.latest()
        return 0 if latest is None else int(latest.name.removeprefix("step-"))

    def best(self) -> Path | None:
        """The complete checkpoint with the best validation."""
        link = self.path / _BEST
        return self.path / link.readlink() if link.is_symlink() and link.exists() else None

    def at(self, step: int) -> Path:
        """Where the checkpoint of a step lies, or would."""
        return self.path / f"step-{step:08d}"

    def save(
        self, learners: Mapping[str, Learner], progress: RunState, identity: Mapping[str, str], *, best: bool
    ) -> Path:
        """Write a checkpoint, then remove all but the last `keep_last` and the best one.

        Args:
            learners: What is kept, by name.
            progress: Where it stands.
            identity: Of the student, for the header of its weights.
            best: It is the best one so far.

        Raises:
            UserError: The disk is full or not writable. Older checkpoints are untouched.
        """
        final = self.at(progress.step)
        temporary = self.path / f".{final.name}.tmp"
        try:
            for unfinished in self.path.glob(".step-*.tmp"):  # left by a killed run
                shutil.rmtree(unfinished)
            temporary.mkdir(parents=True)
            for name, learner in learners.items():
                header = {"step": str(progress.step), **(identity if name == _STUDENT else {})}
                for file, network in _networks(name, learner).items():
                    save_weights(temporary / file, network.state_dict(), header)
            content = {
                "format": _FORMAT,
                "learners": {name: learner.state_dict() for name, learner in learners.items()},
                "random": torch.get_rng_state(),  # for networks with dropout
                "random_cuda": torch.cuda.get_rng_state() if progress.window.is_cuda else None,
            }
            _save_synced(temporary / "state.pt", {**content, **progress._asdict()})
            shutil.rmtree(final, ignore_errors=True)
            temporary.replace(final)
            if best:
                (self.path / f".{_BEST}").unlink(missing_ok=True)
                (self.path / f".{_BEST}").symlink_to(final.name)
                (self.path / f".{_BEST}").replace(self.path / _BEST)
            _sync(self.path)
        except (OSError, RuntimeError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"cannot write checkpoint {final}: {reason}; make room and go on with --resume") from error
        for old in self.all()[: -self.keep_last]:
            if old != self.best():
                shutil.rmtree(old)
        return final

    def load(self, path: Path, learners: Mapping[str, Learner], world: World | None = None) -> RunState:
        """Put weights, averages and the state of the optimisers back, bit for bit.

        Args:
            path: The checkpoint. The first process reads it, and gives to the others what it holds.
            learners: Of the run, by name.
            world: The processes of the run.

        Raises:
            UserError: A file is damaged, of another format, or belongs to another network.
        """
        world, content = world or World(), {}
        with world.agree():
            if world.leads:
                content = _load_state(path)
                for name, learner in learners.items():
                    for file, network in _networks(name, learner).items():
                        load_into(network, path / file)
        content = world.share(content)
        for name, learner in learners.items():
            for network in _networks(name, learner).values():
                world.copy(network.state_dict(keep_vars=True).values())
            learner.load_state_dict(content["learners"][name])
        torch.set_rng_state(content["random"])
        if content["random_cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(content["random_cuda"])
        return RunState(content["step"], content["window"], content["best"], content["environment"])


def _networks(name: str, learner: Learner) -> dict[str, nn.Module]:
    """The networks of a learner by the names of their files."""
    prefix = "" if name == _STUDENT else f"{name}-"
    networks = {f"{prefix}weights.safetensors": learner.network}
    averaged = learner.averaged
    return networks if averaged is learner.network else {**networks, f"{prefix}ema.safetensors": averaged}


def _load_state(checkpoint: Path, *, mmap: bool = False) -> dict[str, Any]:
    """What `state.pt` of a checkpoint holds; with `mmap` no tensor is read before it is used."""
    path = checkpoint / "state.pt"
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # torch.load raises many types for a damaged file
        reason = type(error).__name__
        raise UserError(
            f"{path} is damaged ({reason}); remove its folder to resume from an older checkpoint"
        ) from error
    if content.get("format", 1) != _FORMAT:
        raise UserError(
            f"{path} has format {content.get('format', 1)}, this version of eco-fast resumes format {_FORMAT}; finish "
            f"the run with the version that began it, or begin anew with --init {checkpoint / 'weights.safetensors'}"
        )
    return content


def _save_synced(path: Path, content: Mapping[str, Any]) -> None:
    with path.open("wb") as file:
        torch.save({**content, "environment": dict(content["environment"])}, file)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
