"""Imports point one way, and importing the package loads nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

GROUND = {"console", "display", "errors", "extras", "figure", "files", "stop", "units"}  # what everything stands on

ALLOWED = {  # package -> those of the project that it may import
    "console": set(),
    "errors": set(),
    "extras": set(),
    "figure": {"files"},
    "files": {"errors"},
    "stop": set(),
    "units": set(),
    "measured": {"units"},
    "display": {"console", "units"},
    "faults": set(),
    "config": {"errors", "faults"},
    "eco": {"errors"},
    "models": {"errors", "extras", "files", "eco_kernels"},
    "data": {"errors", "extras", "files", "eco_kernels"},
    "evaluate": {"errors", "figure", "files", "data", "models", "eco_kernels"},
    "train": GROUND | {"config", "data", "models", "eco", "evaluate", "eco_kernels"},
    "commands": GROUND | {"config", "data", "models", "eco", "evaluate", "train", "eco_kernels"},
    "plots": {"figure", "measured"},
    "proof": GROUND | {"config", "models", "eco", "train", "plots", "measured", "commands", "eco_kernels"},
    "cli": {"errors", "config", "models", "evaluate", "train", "commands", "proof"},
    "__main__": {"cli"},
    "__init__": set(),
}


def _imports(file: Path) -> set[str]:
    """Parts of the project that a file imports: `data` for `eco_fast.data.flat`."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names = [node.module or ""]
        for name in names:
            package, _, rest = name.partition(".")
            if package == "eco_kernels":
                found.add(package)
            elif package == "eco_fast" and rest:
                found.add(rest.split(".")[0])
    return found


def test_imports_point_one_way() -> None:
    for file in (ROOT / "eco_fast").rglob("*.py"):
        part = file.relative_to(ROOT / "eco_fast").parts[0].removesuffix(".py")
        extra = _imports(file) - ALLOWED[part] - {part}
        assert not extra, f"{file.relative_to(ROOT)} imports {extra}"


def test_the_kernels_do_not_know_the_trainer() -> None:
    for file in (ROOT / "kernels").rglob("*.py"):
        assert _imports(file) <= {"eco_kernels"}, file


def test_the_source_root_of_the_kernels_is_no_package() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()  # it would hide the PyPI package called kernels


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    heavy = "torch numpy PIL triton pydantic matplotlib nvidia skimage"
    code = f"import sys, eco_fast.cli; print([m for m in {heavy.split()} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"
