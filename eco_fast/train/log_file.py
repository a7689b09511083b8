"""`train.log` in a run's folder: all that was said, and by what, where and from which state of the sources."""

import platform
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import eco_fast
from eco_fast.train.machine import commit_of

_SOURCES = Path(eco_fast.__file__).parents[1]


class LogFile:
    """Lines with their times. They are held in memory until the run's folder is there."""

    def __init__(self, complain: Callable[[str], None]) -> None:
        """No file is touched.

        Args:
            complain: Told once if the file can't be written. The run goes on: its figures are kept elsewhere.
        """
        self._complain = complain
        self._file: Path | None = None
        self._lost = False  # it can't be written
        self._held: list[str] = []

    def add(self, text: str) -> None:
        """One thing that was said."""
        self._held.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")
        if self._file is not None and not self._lost:
            self._write("a")

    def open(self, file: Path, environment: Mapping[str, str], *, append: bool) -> None:
        """Write what was said so far, below what a reader wants to know first; from now on lines go there at once.

        Args:
            file: Its folder exists.
            environment: What the run's bits depend on, by name; see `describe`.
            append: Keep what is there, of an earlier part of the same run.
        """
        self._file = file
        self._held[:0] = [f"{line}\n" for line in _head(environment)]
        if append:
            self._held.insert(0, "\n")
        self._write("a" if append else "w")

    @contextmanager
    def last_words(self) -> Iterator[None]:
        """Note what ends the run, where something inside does."""
        try:
            yield
        except BaseException as error:
            self.add(f"{type(error).__name__}: {error}")
            raise

    def _write(self, mode: str) -> None:
        assert self._file is not None
        try:
            with self._file.open(mode, encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(self._held)
        except OSError as error:
            self._lost = True
            self._complain(f"cannot write {self._file}: {error.strerror or error}; the run goes on without it")
        self._held.clear()


def _head(environment: Mapping[str, str]) -> list[str]:
    """Command, host, versions, and the commits of the package's sources and of the current folder."""
    facts = {
        "command": shlex.join(sys.argv),
        "folder": str(Path.cwd()),
        "host": f"{socket.gethostname()}, {platform.platform()}, Python {platform.python_version()}",
        **environment,
        "commit of eco-fast": commit_of(_SOURCES) if (_SOURCES / ".git").exists() else "none",
        "commit of the folder": commit_of(Path.cwd()),
    }
    return [f"{name}: {value}" for name, value in facts.items() if value != "none"]
