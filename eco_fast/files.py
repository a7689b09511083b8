"""Writing files so that a crash never leaves half of one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from eco_fast.errors import UserError


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one, never a part.

    Raises:
        OSError: The file cannot be written; what was there is untouched.
    """
    with opened_atomically(path) as file:
        file.write(content)


@contextmanager
def opened_atomically(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` when it is complete; nothing of it is left where that fails.

    Raises:
        OSError: The file cannot be written; what was there is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with moved_when_complete(temporary, path), temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def moved_when_complete(temporary: Path, path: Path) -> Iterator[None]:
    """Inside, a temporary file is written; it then takes the place of `path`, or goes where something is raised."""
    try:
        yield
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write(path: Path, content: bytes, hint: str = "name another file") -> None:
    """Make the folder of a file and write it as `write_atomically` does.

    Raises:
        UserError: The file cannot be written: one line with the reason, and with `hint`, which says what to do.
    """
    with writing(path, hint):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)


@contextmanager
def writing(path: Path, hint: str = "name another file") -> Iterator[None]:
    """Turn an OSError inside into the one line `cannot write PATH: REASON; HINT`.

    Raises:
        UserError: Something inside could not be written.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; {hint}") from error
