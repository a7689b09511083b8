"""What the folder of a run tells without loading it; those of older versions too."""

import tomllib
from pathlib import Path
from typing import Any

from eco_fast.commands.tables import name_of
from eco_fast.errors import UserError
from eco_fast.models import parameters_of
from eco_fast.models.weights import unfilled


class RunSettings:
    """The settings that a run was made with, as far as its `config.toml` holds them."""

    def __init__(self, run: Path) -> None:
        """Read them; without a file nothing is known.

        Raises:
            UserError: The file cannot be read.
        """
        file = run / "config.toml"
        try:
            self._document = tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {file}: {error}; mend it, or leave the run out") from error

    def _get(self, section: str, key: str) -> Any:
        return self._document.get(section, {}).get(key)

    @property
    def scale(self) -> int | None:
        """2, 3 or 4."""
        return self._document.get("scale")

    @property
    def mode(self) -> str | None:
        """What the student learns."""
        return self._document.get("mode")

    @property
    def network(self) -> str | None:
        """Name of the student's network."""
        return self._get("student", "name")

    @property
    def parameters(self) -> int | None:
        """Those of the student's network; None too where it is a network that is not known here."""
        if self.network is None or self.scale is None:
            return None
        try:
            network = unfilled(self.network, self.scale, self._get("student", "options") or {})
        except UserError:  # of another version, or of a library that is not installed here
            return None
        return parameters_of(network)

    @property
    def teacher(self) -> str | None:
        """What the teacher's run or file is called."""
        file = self._get("teacher", "file")
        return None if file is None or self.mode == "vanilla" else name_of(Path(file))

    @property
    def chosen_on(self) -> Path | None:
        """The validation images that choose the best checkpoint: the first of those that are named."""
        valid = self._get("data", "valid")  # one path, or a list
        first = next(iter(valid), None) if isinstance(valid, list) else valid
        return None if first is None else Path(first)
