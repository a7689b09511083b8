"""Checkpoints: a folder per step, written under a temporary name and renamed when it is complete."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eco_fast.errors import UserError
from eco_fast.models.weights import load_into, save_weights
from eco_fast.train.step import StudentStep

_BEST = "best"


class Progress(NamedTuple):
    """Where a checkpoint stands."""

    step: int  # updates done
    window: Tensor  # since the last line of the log: sum of the accepted losses, and their number; fp32 (2,)
    best: float | None  # highest validation PSNR-Y so far
    environment: Mapping[str, str]


class Checkpoints:
    """The checkpoints of one run: `step-00001000/` with `weights.safetensors`, `ema.safetensors`, `state.pt`.

    A link `best` names the one with the highest validation PSNR-Y.
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

    def best(self) -> Path | None:
        """The complete checkpoint with the best validation."""
        link = self.path / _BEST
        return self.path / link.readlink() if link.is_symlink() and link.exists() else None

    def save(self, state: StudentStep, progress: Progress, identity: Mapping[str, str], *, best: bool) -> Path:
        """Write a checkpoint, then remove all but the last `keep_last` and the best one.

        Args:
            state: What is kept.
            progress: Where it stands.
            identity: Of the network, for the header of the weights.
            best: It is the best one so far.

        Raises:
            UserError: The disk is full or not writable. Older checkpoints are untouched.
        """
        final = self.path / f"step-{progress.step:08d}"
        temporary = self.path / f".{final.name}.tmp"
        metadata = {**identity, "step": str(progress.step)}
        try:
            for unfinished in self.path.glob(".step-*.tmp"):  # left by a killed run
                shutil.rmtree(unfinished)
            temporary.mkdir(parents=True)
            save_weights(temporary / "weights.safetensors", state.student.state_dict(), metadata)
            if state.ema is not None:
                save_weights(temporary / "ema.safetensors", state.ema.network.state_dict(), metadata)
            content = {
                "optimizer": state.optimizer.state_dict(),
                "guard": state.guard.state_dict(),
                "random": torch.get_rng_state(),  # for networks with dropout
                "random_cuda": torch.cuda.get_rng_state() if progress.window.is_cuda else None,
            }
            if state.loss_scale is not None:
                content["loss_scale"] = state.loss_scale.state_dict()
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

    def load(self, path: Path, state: StudentStep) -> Progress:
        """Put weights, average and optimiser state back, bit for bit.

        Raises:
            UserError: A file is damaged, or belongs to another network.
        """
        load_into(state.student, path / "weights.safetensors")
        if state.ema is not None:
            load_into(state.ema.network, path / "ema.safetensors")
        content = _load_state(path / "state.pt")
        state.optimizer.load_state_dict(content["optimizer"])
        state.guard.load_state_dict(content["guard"])
        torch.set_rng_state(content["random"])
        if content["random_cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(content["random_cuda"])
        if state.loss_scale is not None:
            state.loss_scale.load_state_dict(content["loss_scale"])
        return Progress(content["step"], content["window"], content["best"], content["environment"])


def _load_state(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types for a damaged file
        reason = type(error).__name__
        raise UserError(
            f"{path} is damaged ({reason}); remove its folder to resume from an older checkpoint"
        ) from error
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
