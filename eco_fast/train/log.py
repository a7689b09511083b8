"""The metrics of a run for TensorBoard, an extra."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eco_fast.errors import UserError


class Curves:
    """Writes event files beside `metrics.jsonl`."""

    def __init__(self, folder: Path) -> None:
        """Open the run's folder.

        Raises:
            UserError: TensorBoard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError('run.tensorboard needs TensorBoard: pip install "eco-fast[tensorboard]"') from error
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def add(self, record: Mapping[str, Any]) -> None:
        """Every number of a line of metrics, nested ones under the names above them."""
        self._add(record["kind"], record, record["step"])

    def _add(self, name: str, value: Any, step: int) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                self._add(f"{name}/{key}", inner, step)
        elif isinstance(value, int | float):
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
