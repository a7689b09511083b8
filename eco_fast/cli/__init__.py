"""The commands: parse, call, print. Everything heavy is imported inside them, so that `--help` is quick."""

import os
import sys
from typing import Annotated

import typer

from eco_fast import __version__
from eco_fast.cli import images, measuring, stores, training
from eco_fast.cli.options import group
from eco_fast.errors import SaidElsewhere, Stopped, UserError

app = group(help="Train and evaluate single-image super-resolution networks with ECO (Lee & Heo, AAAI 2024).")
for part in (training, images, stores, measuring):
    app.add_typer(part.commands)
app.add_typer(measuring.bench, name="bench")


_CORE = {  # a module -> its name, and that of its package
    "torch": ("PyTorch", "torch"),
    "triton": ("Triton", "triton"),
    "numpy": ("NumPy", "numpy"),
    "PIL": ("Pillow", "pillow"),
    "pydantic": ("Pydantic", "pydantic"),
    "rich": ("Rich", "rich"),
    "tomli_w": ("Tomli-W", "tomli-w"),
    "safetensors": ("safetensors", "safetensors"),
    "matplotlib": ("Matplotlib", "matplotlib"),
}


def main(arguments: list[str] | None = None) -> None:
    """Run a command; a `UserError`, or a package that is missing, becomes one line on stderr and exit code 2."""
    try:
        app(args=arguments, prog_name="eco-fast")
    except SaidElsewhere:
        sys.exit(2)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in _CORE:
            raise
        name, package = _CORE[module]
        print(f"error: {name} is not installed; pip install {package}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stop:
        if os.environ.get("RANK", "0") == "0":  # of several processes one says it
            print(stop, file=sys.stderr)
        sys.exit(130)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"eco-fast {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...
