"""The training runs behind the figures: each is `eco-fast train` with `student.toml`, run once and kept in a folder.

All runs of a seed start from the same weights and see the same patches in the same order. Several run at a time, one
thread each. A run that is complete is not repeated; one that was killed goes on from its checkpoint.
"""

import json
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from eco_fast.commands.compare import Curve, read_curve
from eco_fast.config import Config, TeacherConfig, config_toml, load_config
from eco_fast.data.find import find_images
from eco_fast.data.make_store import prepare
from eco_fast.display import Display
from eco_fast.errors import UserError
from eco_fast.train.run_folder import Checkpoints
from eco_fast.train.teacher import load_teacher, store_teacher

RECIPE = Path(__file__).parent / "student.toml"
SEEDS = (0, 1, 2)
STEPS = 4000
VALIDATIONS = 20  # per run
OWN_STEPS = 12_000  # of the teacher that has the student's architecture
_OWN_SEED = 100  # its first weights are not those of any student
_SHIFT = 2.0  # of "shifted": alpha is above 0 from 46 % of training on and 1 from 94 %
_CROP = 256  # side of the validation images: the centre of every held-out photograph


@dataclass(frozen=True)
class Trial:
    """One run: what it sets over the recipe. `teacher` is "rlfn-s", "own" or, for `vanilla`, "none"."""

    mode: str
    seed: int
    teacher: str = "none"
    steps: int = STEPS
    batch: int = 16
    alpha: str = "official"  # schedule; "shifted" is the official one with a later rise

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.mode}-{self.teacher}-{self.alpha}-batch{self.batch}-steps{self.steps}-seed{self.seed}"

    @property
    def work(self) -> int:
        """Patches, for the estimate of the time that is left."""
        return self.steps * self.batch

    def columns(self) -> dict[str, object]:
        """What a CSV row says of it."""
        return {key: getattr(self, key) for key in ("mode", "teacher", "alpha", "batch", "steps", "seed")}


@dataclass(frozen=True)
class Lab:
    """Where images come from and where runs go.

    Args:
        data: Folder with `train/`, `Kodak24/HR`, `Set5` and `weights/RLFN/rlfn_s_x2.pth`.
        work: Takes stores and runs.
        jobs: Runs at a time.
    """

    data: Path
    work: Path
    jobs: int

    @property
    def display(self) -> Display:
        """Shows progress."""
        return Display()

    def config(self, trial: Trial) -> Config:
        """The configuration of a run."""
        schedule, shift = ("official", _SHIFT) if trial.alpha == "shifted" else (trial.alpha, 0.0)
        teacher = None if trial.teacher == "none" else self.teacher(trial.teacher)
        every = max(trial.steps // VALIDATIONS, 1)
        settings: dict[str, Any] = {
            "mode": trial.mode,
            "alpha.schedule": schedule,
            "alpha.shift": shift,
            "data.train": [str(self._store)],
            "data.valid": str(self._valid),
            "data.batch": trial.batch,
            "run.seed": trial.seed,
            "run.steps": trial.steps,
            "run.valid_every": every,
            "run.checkpoint_every": 5 * every,
            "run.out": str(self.folder(trial)),
            "teacher.file": teacher and str(teacher.file),
            "teacher.name": teacher and teacher.name,
        }
        return load_config(RECIPE, flags=settings)

    def folder(self, trial: Trial) -> Path:
        """Of a run."""
        return self.work / trial.name

    def curves(self, trials: Iterable[Trial]) -> dict[Trial, Curve]:
        """The validation of runs, which are trained where that was not done yet."""
        trials = list(dict.fromkeys(trials))
        self.prepare(trial.teacher for trial in trials)
        self._train(trials)
        return {trial: _trained(read_curve(self.folder(trial))) for trial in trials}

    def prepare(self, teachers: Iterable[str]) -> None:
        """Make the validation images, the teachers, and the store with their centroids."""
        self._crop_validation_images()
        folders = sorted(path for path in (self.data / "train").iterdir() if path.is_dir())
        prepare(folders, [2], self._store, progress=self.display.rate)
        for name in sorted(set(teachers) - {"none"}):
            if name == "own":
                self._train([OWN_TEACHER])
            config = self.teacher(name)
            teacher = store_teacher(load_teacher(config, 2), 2, "fp32", "cpu")
            prepare(folders, [2], self._store, teacher=teacher, progress=self.display.rate)

    def teacher(self, name: str) -> TeacherConfig:
        """Where a teacher is."""
        if name == "own":
            return TeacherConfig(file=self.folder(OWN_TEACHER))
        return TeacherConfig(file=self.data / "weights" / "RLFN" / "rlfn_s_x2.pth", name="rlfn-s")

    @property
    def _store(self) -> Path:
        return self.work / "store"

    @property
    def _valid(self) -> Path:
        return self.work / "held-out"

    def _crop_validation_images(self) -> None:
        self._valid.mkdir(parents=True, exist_ok=True)
        for file in find_images(self.data / "Kodak24" / "HR"):
            with Image.open(file) as image:
                left, top = ((side - _CROP) // 2 for side in image.size)
                image.crop((left, top, left + _CROP, top + _CROP)).save(self._valid / f"{file.stem}.png")

    def _train(self, trials: list[Trial]) -> None:
        """Run what is not complete, `jobs` at a time; the first failure ends the rest."""
        waiting = [trial for trial in trials if self._progress(trial) < trial.steps]
        total = sum(trial.work for trial in waiting)
        with ThreadPoolExecutor(self.jobs) as pool, self.display.count(f"{len(waiting)} runs") as show:
            futures = [pool.submit(self._run, trial) for trial in waiting]
            pending: set[Future[None]] = set(futures)
            while pending:
                _, pending = wait(pending, timeout=2, return_when=FIRST_EXCEPTION)
                show(sum(trial.work * self._progress(trial) // trial.steps for trial in waiting), total)
                if any(future.done() and future.exception() for future in futures):
                    pool.shutdown(cancel_futures=True)
            for future in futures:
                if not future.cancelled():
                    future.result()

    def _run(self, trial: Trial) -> None:
        folder = self.folder(trial)
        recipe, log = folder.with_suffix(".toml"), folder.with_suffix(".log")
        recipe.write_text(config_toml(self.config(trial)), encoding="utf-8")
        started = Checkpoints(folder / "checkpoints", 1).latest() is not None
        command = [sys.executable, "-m", "eco_fast", "train", str(recipe), "--resume" if started else "--force"]
        with log.open("a", encoding="utf-8") as file:
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
        if code != 0:
            last = log.read_text(encoding="utf-8").splitlines()[-1:]
            raise UserError(f"{trial.name} failed with exit code {code}: {' '.join(last)} (all of it: {log})")

    def _progress(self, trial: Trial) -> int:
        """Steps that a run has logged; all of them only when its last checkpoint is there."""
        metrics = self.folder(trial) / "metrics.jsonl"
        lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True) if metrics.is_file() else []
        steps = max((json.loads(line)["step"] for line in lines[-2:] if line.endswith("\n")), default=0)
        complete = (self.folder(trial) / "checkpoints" / f"step-{trial.steps:08d}").is_dir()
        return trial.steps if complete else min(steps, trial.steps - 1)


def _trained(curve: Curve) -> Curve:
    """A curve without what was validated before the first step."""
    first = next(place for place, step in enumerate(curve.steps) if step)
    return curve._replace(steps=curve.steps[first:], minutes=curve.minutes[first:], psnr_y=curve.psnr_y[first:])


OWN_TEACHER = Trial("vanilla", _OWN_SEED, steps=OWN_STEPS)
