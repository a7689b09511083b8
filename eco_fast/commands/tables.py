"""Tables of several runs or networks: what each is called, and columns that fit the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from eco_fast.errors import UserError

_FRAME = 3  # characters beside the text of a column


def labels(paths: Sequence[Path]) -> dict[str, Path]:
    """Runs, checkpoints and weights files by short names, or by their paths where two have one name.

    A run is called by its folder, a file by its name without extension, and what lies in a run by both: `eco/best`.

    Raises:
        UserError: One is named twice.
    """
    names = [name_of(path) for path in paths]
    found = {name if names.count(name) == 1 else str(path): path for name, path in zip(names, paths, strict=True)}
    if len(found) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise UserError(f"{twice} is named twice; name each once")
    return found


def name_of(path: Path) -> str:
    """The short name of a run, a checkpoint or a file."""
    # The link `best` is followed only where it is not the last part: it says more than the step that it leads to.
    place = path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name
    *above, last = place.parts
    name = last if path.is_dir() else place.stem
    if "checkpoints" not in above[2:]:
        return name
    inside = above.index("checkpoints", 2)
    return "/".join((above[inside - 1], *above[inside + 1 :], name))


def print_in_blocks(console: Console, heading: str, rows: Sequence[str], columns: Mapping[str, Sequence[str]]) -> None:
    """Print a table, or several below each other where its columns do not fit the console beside their rows' names.

    Args:
        console: Where it goes.
        heading: Of the names.
        rows: Names, which are folded where they are long.
        columns: Heading, perhaps of several lines, -> a cell for each row; cells are never cut or wrapped.
    """
    widths = [_width(name, cells) for name, cells in columns.items()]
    room = console.width - 1  # for all columns
    names = _width(heading, rows)
    if names + sum(widths) > room:
        names = min(names, room // 4 + _FRAME)
    blocks: list[list[str]] = [[]]
    left = room - names
    for name, width in zip(columns, widths, strict=True):
        if width > left and blocks[-1]:
            blocks.append([])
            left = room - names
        blocks[-1].append(name)
        left -= width
    for block in blocks:
        table = Table()
        table.add_column(heading, max_width=names - _FRAME, overflow="fold")
        for name in block:
            # A heading that is too long for the console is wrapped, down to the width of the cells.
            table.add_column(name, justify="right", min_width=max(map(cell_len, columns[name])), overflow="fold")
        for row, *cells in zip(rows, *(columns[name] for name in block), strict=True):
            table.add_row(row, *cells)
        console.print(table)


def _width(heading: str, cells: Sequence[str]) -> int:
    return max(map(cell_len, (*heading.splitlines(), *cells))) + _FRAME
