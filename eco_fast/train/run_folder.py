"""The folder of a run: `config.toml`, `metrics.jsonl`, `checkpoints/`. Nobody's run is overwritten by accident."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eco_fast.config import Config, config_toml, load_config
from eco_fast.errors import UserError
from eco_fast.files import write_atomically
from eco_fast.train.checkpoint import Checkpoints


class RunFolder:
    """Paths and files of one run."""

    def __init__(self, path: Path, keep_last: int) -> None:
        self.path = path
        self.config_file = path / "config.toml"
        self.metrics_file = path / "metrics.jsonl"
        self.checkpoints = Checkpoints(path / "checkpoints", keep_last)

    def claim(self, *, resume: bool, force: bool) -> None:
        """Make sure that this run may be written here, before any work is done.

        Raises:
            UserError: The folder holds something and neither `resume` nor `force` is given, it has no checkpoint to
                resume from, or it can't be written.
        """
        if resume and force:
            raise UserError("--resume and --force exclude each other; give one of them")
        if resume and self.checkpoints.latest() is None:
            raise UserError(f"{self.path} has no checkpoint to resume from; leave --resume out to start a run there")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            occupied = any(self.path.iterdir())
            probe = self.path / ".probe"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"cannot write to {self.path}: {error.strerror}; choose another folder with --out"
            ) from None
        if occupied and not resume and not force:
            raise UserError(
                f"{self.path} is not empty; continue it with --resume, replace it with --force, or choose --out"
            )

    def previous_config(self) -> Config:
        """The resolved configuration that the run was started with."""
        return load_config(self.config_file)

    def start(self, config: Config) -> None:
        """Remove an older run (`claim` has asked for --force) and write the resolved configuration."""
        shutil.rmtree(self.checkpoints.path, ignore_errors=True)
        self.metrics_file.unlink(missing_ok=True)
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
