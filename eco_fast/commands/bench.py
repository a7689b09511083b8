"""`eco-fast bench`: finds the benchmarks in the source tree, which a wheel does not contain."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

from eco_fast.errors import UserError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
"""Only a source tree, and so an editable installation, has this folder."""


def suites() -> ModuleType:
    """The module that runs the benchmarks, `benchmarks/suites.py`.

    Raises:
        UserError: There is no source tree.
    """
    if not (BENCHMARKS / "suites.py").is_file():
        raise UserError(f"{BENCHMARKS} is missing: benchmarks need the source tree, installed with `pip install -e .`")
    if str(BENCHMARKS) not in sys.path:
        sys.path.append(str(BENCHMARKS))  # by name, and not by file, so that its worker processes find it too
    return importlib.import_module("suites")
