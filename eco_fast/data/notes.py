"""What was done to the user's images without being asked: counted while reading, said once."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from eco_fast.errors import UserError

_NAMED = 3  # names per line


class Notes:
    """Counts of converted, cropped and left-out images and of other files, by kind. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: dict[str, list[str]] = {}
        self._tolerated: set[str] = set()

    def add(self, kind: str, name: str, *, tolerated: bool = False) -> None:
        """Count one image.

        Args:
            kind: What happened, worded for several: "greyscale images converted to RGB".
            name: The image.
            tolerated: Reported, but not an error under `--strict`.
        """
        with self._lock:
            self._names.setdefault(kind, []).append(name)
            if tolerated:
                self._tolerated.add(kind)

    def kinds(self) -> list[str]:
        """What was counted, without the names."""
        with self._lock:
            return sorted(self._names)

    def take(self, other: "Notes") -> None:
        """Add what other notes have counted."""
        with self._lock, other._lock:
            for kind, names in other._names.items():
                self._names.setdefault(kind, []).extend(names)
            self._tolerated |= other._tolerated

    def lines(self) -> list[str]:
        """One line per kind, with the first three names: "4 images left out: a.png, b.png, c.png, ..."."""
        with self._lock:
            return [_line(kind, names) for kind, names in sorted(self._names.items())]

    def raise_if_any(self) -> None:
        """Turn the notes into an error, as `--strict` asks.

        Raises:
            UserError: There is a note that is not tolerated; the line says all of them.
        """
        with self._lock:
            found = [_line(kind, names) for kind, names in sorted(self._names.items()) if kind not in self._tolerated]
        if found:
            raise UserError(f"{'; '.join(found)}; fix or remove these images, or leave --strict out")


class Unusable:
    """Images that cannot be used, collected so that all of them are named at once. Safe to share between threads."""

    def __init__(self) -> None:
        self._faults: list[tuple[str, UserError]] = []

    @contextmanager
    def collected(self, name: str) -> Iterator[None]:
        """Keep a `UserError` that is raised inside; the image is called `name`."""
        try:
            yield
        except UserError as error:
            self._faults.append((name, error))

    def raise_if_any(self) -> None:
        """Name them.

        Raises:
            UserError: There is one; of several the line has all names and the first fault.
        """
        if len(self._faults) == 1:
            raise self._faults[0][1]
        if self._faults:
            faults = sorted(self._faults, key=lambda fault: fault[0])
            names = ", ".join(name for name, _ in faults)
            raise UserError(f"{len(faults)} images cannot be used: {names}; the first: {faults[0][1]}")


def first_names(names: list[str]) -> str:
    """The first three names in alphabetical order, "..." for the rest."""
    named = sorted(names)  # threads finish in any order: the line must not depend on it
    return ", ".join([*named[:_NAMED], "..."] if len(named) > _NAMED else named)


def _line(kind: str, names: list[str]) -> str:
    worded = re.sub(r"\b(image|file)s\b", r"\1", kind, count=1) if len(names) == 1 else kind
    return f"{len(names)} {worded}: {first_names(names)}"
