"""What the commands share: how they are registered, completed in a shell, and the options that several of them have."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from eco_fast.models.table import NETWORKS, SPANDREL

Completion = Callable[[str], list[str]]  # what was typed of a value -> the values that begin so


def group(**settings: Any) -> typer.Typer:
    """A group of commands whose help is plain text, whatever else is installed, and asked for by `-h` too."""
    names = {"help_option_names": ["-h", "--help"]}
    plain: dict[str, Any] = {"pretty_exceptions_enable": False, "rich_markup_mode": None}
    return typer.Typer(no_args_is_help=True, context_settings=names, **plain, **settings)


def command(
    group: typer.Typer, name: str, short_help: str, *examples: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command: `short_help` is its line in the list of commands, its docstring opens its own help."""
    lines = "\n".join(f"  {example}" for example in examples)
    epilog = f"\b\nExamples:\n{lines}"  # the mark keeps the lines apart
    return group.command(name, short_help=short_help, epilog=epilog)


def starting(names: Iterable[str], typed: str) -> list[str]:
    """Those of `names` that begin with what was typed."""
    return [name for name in names if name.startswith(typed)]


def one_of(*names: str) -> Completion:
    """A completion that offers these names."""

    def complete(incomplete: str) -> list[str]:
        return starting(names, incomplete)

    return complete


def files(incomplete: str) -> list[str]:
    """Offer nothing: the shell completes files where it gets no answer, and typer's own answer may be in its way."""
    return []


def recipes(incomplete: str) -> list[str]:
    """Offer the recipes of the package and TOML files here; paths to other folders are left to the shell."""
    return [*builtin(incomplete), *starting(sorted(path.name for path in Path().glob("*.toml")), incomplete)]


def builtin(incomplete: str) -> list[str]:
    """Offer the recipes of the package."""
    from eco_fast.config import recipe_names

    return starting(recipe_names(), incomplete)


def modes(incomplete: str) -> list[str]:
    """Offer the modes of training."""
    from eco_fast.config import Mode

    return starting(get_args(Mode), incomplete)


def checks(incomplete: str) -> list[str]:
    """Offer the checks of the GPU proof, for the last one of a list with commas."""
    from eco_fast.proof.table import TABLE

    head, comma, last = incomplete.rpartition(",")
    return [f"{head}{comma}{name}" for name in starting([check.name for check in TABLE], last)]


def published(incomplete: str) -> list[str]:
    """Offer the networks whose figures were published."""
    from eco_fast.evaluate.published import names

    return starting(names(), incomplete)


def path(option: str, metavar: str, help: str) -> Any:
    """An option that takes a path."""
    return typer.Option(option, metavar=metavar, autocompletion=files, help=help)


def paths(metavar: str, help: str) -> Any:
    """An argument that takes one or several paths."""
    return typer.Argument(metavar=metavar, autocompletion=files, help=help, show_default=False)


def choice(option: str, metavar: str, names: Completion, help: str) -> Any:
    """An option whose values a shell completes."""
    return typer.Option(option, metavar=metavar, autocompletion=names, help=help)


def scale(help: str) -> Any:
    """The option `--scale`, for one scale."""
    return choice("--scale", "2|3|4", one_of("2", "3", "4"), help)


WEIGHTS = "Run, checkpoint or weights file."

Network = Annotated[
    str | None,
    choice(
        "--network",
        "NAME",
        one_of(*NETWORKS, *SPANDREL),
        "Network of a bare weights file, such as edsr-baseline; by default found by its shapes.",
    ),
]
FileScale = Annotated[int | None, scale("Scale of a bare weights file; by default found by its shapes.")]
Device = Annotated[
    str, choice("--device", "NAME", one_of("auto", "cpu", "cuda"), "Where to compute: auto, cpu or cuda (or cuda:1).")
]
Threads = Annotated[
    int | None, typer.Option("--threads", metavar="N", help="CPU threads; by default as many as PyTorch takes.")
]
Tile = Annotated[
    int | None,
    typer.Option("--tile", metavar="N", help="Side of a tile in LR pixels; by default as large as memory allows."),
]
Precision = Annotated[
    str,
    choice("--precision", "NAME", one_of("fp32", "bf16", "fp16"), "Arithmetic of the network: fp32, bf16 or fp16."),
]
Raw = Annotated[bool, typer.Option("--raw", help="Take a run's weights themselves instead of their average.")]
Ensemble = Annotated[bool, typer.Option("--ensemble", help="Take the mean over eight orientations; 8 times as slow.")]
