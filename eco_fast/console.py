"""The console of all commands: names of files and folders are printed as they are."""

from rich.console import Console

_PIPE = 160  # characters: a pipe has no width, and a table cut to a guessed one is worth nothing


def plain_console(*, quiet: bool = False) -> Console:
    """A console that takes neither `[bold]` nor `:tada:` for more than text, in lines and in tables.

    The texts of a status or of a progress bar are not the console's to read: make them of `Text`, without markup.
    """
    console = Console(markup=False, emoji=False, highlight=False, quiet=quiet)
    if not console.is_terminal:
        console.width = max(console.width, _PIPE)
    return console
