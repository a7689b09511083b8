"""What `eco_kernels` may import, and where it lives."""

import ast
import subprocess
import sys
from inspect import isclass
from pathlib import Path

import pytest

import eco_kernels
from eco_kernels import reference

FOLDER = Path(eco_kernels.__file__).parent
MODULES = sorted(FOLDER.rglob("*.py"))
ALLOWED = {"torch", "triton", "eco_kernels"}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_imports_torch_triton_and_the_standard_library_only(module: Path) -> None:
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {module.name}:{node.lineno}"
            names = [node.module or ""]
        else:
            continue
        for name in names:
            root = name.split(".")[0]
            assert root in ALLOWED or root in sys.stdlib_module_names, f"{module.name}:{node.lineno} imports {name}"


def test_kernels_is_no_package() -> None:
    """A package named `kernels` would hide the one of that name on PyPI."""
    assert not (FOLDER.parent / "__init__.py").exists()


def test_importing_changes_no_global_state() -> None:
    code = (
        "import torch; before = (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(),"
        " torch.get_float32_matmul_precision()); import eco_kernels; assert before == (torch.get_num_threads(),"
        " torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_float32_matmul_precision());"
        "import sys; assert 'eco_fast' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=FOLDER.parent)


def test_public_names() -> None:
    assert sorted(eco_kernels.__all__) == eco_kernels.__all__
    for name in eco_kernels.__all__:
        public = getattr(eco_kernels, name)
        assert public.__doc__
        assert hasattr(reference, name) or isclass(public) or name == "first_blocks"
