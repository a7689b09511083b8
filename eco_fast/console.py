"""The console of all commands: names of files and folders are printed as they are."""

import textwrap
from collections.abc import Callable, Collection

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

_PIPE = 160  # characters: a pipe has no width, and a table cut to a guessed one is worth nothing


def plain_console(*, quiet: bool = False) -> Console:
    """A console that takes neither `[bold]` nor `:tada:` for more than text, in lines and in tables.

    The texts of a status or of a progress bar are not the console's to read: make them of `Text`, without markup.
    """
    console = Console(markup=False, emoji=False, highlight=False, quiet=quiet)
    if not console.is_terminal:
        console.width = max(console.width, _PIPE)
    return console


def say(console: Console, text: str) -> None:
    """Print text, whole. On a terminal its lines end between words; a long path is left to the terminal to break."""
    if console.is_terminal:
        text = "\n".join(map(_wrapped(console.width), text.split("\n")))
    console.print(text, soft_wrap=True)


def _wrapped(width: int) -> Callable[[str], str]:
    wrapper = textwrap.TextWrapper(width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return lambda line: line if cell_len(line) <= width else wrapper.fill(line)


def plain_table(*columns: str, figures: Collection[str] = ()) -> Table:
    """A table that fits its console: words are wrapped, figures stay whole on the right, nothing is cut.

    Args:
        columns: Headings, from the left.
        figures: Those of `columns` that hold figures.
    """
    table = Table()
    for column in columns:
        table.add_column(
            column,
            justify="right" if column in figures else "left",
            no_wrap=column in figures,
            overflow="fold",  # a word that is wider than its column goes on in the next line
        )
    return table
