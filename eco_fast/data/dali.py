"""The only door to NVIDIA DALI."""

from types import ModuleType
from typing import Any, NamedTuple

from eco_fast.errors import UserError
from eco_fast.extras import install


class Dali(NamedTuple):
    """The parts of DALI in use; its package is no dependency of the type checker."""

    Pipeline: Any
    fn: ModuleType
    types: ModuleType
    name: str  # with its version


def load_dali(source: str) -> Dali:
    """Import DALI for the source of that name.

    Raises:
        UserError: It is not installed, or does not load here.
    """
    try:
        from nvidia.dali import __version__, fn, types
        from nvidia.dali.pipeline import Pipeline
    except (ImportError, OSError) as error:  # OSError: a library of the package does not fit this platform
        reason = " ".join(str(error).split())
        raise UserError(
            f"data.source={source} needs NVIDIA DALI, which cannot be imported ({reason}); "
            f"{install('dali')}, or use --set data.source=resident"
        ) from error
    return Dali(Pipeline, fn, types, f"DALI {__version__}")
