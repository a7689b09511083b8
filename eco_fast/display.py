"""What a person sees while it runs: one line that moves on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from eco_fast.console import plain_console, say
from eco_fast.units import clock, duration


class Count(Protocol):
    """Shows how far a piece of work is."""

    def __call__(self, done: int, total: int, status: str | None = None) -> None: ...


class Part(NamedTuple):
    """A piece of a line, and what it is worth: where a line is too narrow the highest rank goes first, 0 never."""

    text: str
    rank: int = 0


ASIDE = 5
"""Parts of this rank and above are shown only where there is room for them beside a bar."""

_SOON = 0.5  # seconds: shorter work is not worth a word
_PLAIN_SECONDS = 10.0  # between two plain lines of one count
_GAP = "  "
_MOST, _USUAL, _LEAST = 40, 10, 4  # characters of a bar


class Display:
    """Lines, counts and the line of training, on one console."""

    def __init__(self, console: Console | None = None, also: Callable[[str], None] = lambda text: None) -> None:
        """Nothing is said yet.

        Args:
            console: Where it is shown.
            also: Gets every line too, and those of training that a terminal does not keep.
        """
        self.console = console or plain_console()
        self._also = also

    def line(self, text: str) -> None:
        """Print one line, whole (see `say`)."""
        say(self.console, text)
        self._also(text)

    @contextmanager
    def count(self, description: str, start: int = 0) -> Iterator[Count]:
        """For a piece of work that is counted; call the result with (done, total) and perhaps a status.

        On a terminal there is a bar while it lasts, and a status stays in sight until the next one. Elsewhere a plain
        line is printed every ten seconds. At the end one line says what was done and how long it took. Work that takes
        no time is not mentioned. `start` is what was done before: it took none of the time.
        """
        moving = _Moving(description, start, _SOON)
        said = moving.began
        with self._shown(moving):

            def show(done: int, total: int, status: str | None = None) -> None:
                nonlocal said
                moving.update(done, total, None if status is None else [Part(status, 1)])
                if not self._moves and moving.now - said > _PLAIN_SECONDS and done < total:
                    said = moving.now
                    self.line(_GAP.join(moving.plain()))

            yield show
        if moving.done == moving.total and moving.now - moving.began >= _SOON:
            self.line(f"{description}: {moving.total - start} in {duration(moving.now - moving.began)}")

    @contextmanager
    def rate(self, description: str) -> Iterator[Callable[[int, int, float], None]]:
        """A count with MB/s; call the result with (done, total, MB/s)."""
        with self.count(description) as show:
            yield lambda done, total, rate: show(done, total, f"{rate:.0f} MB/s")

    @contextmanager
    def training(self, steps: int, done: int) -> Iterator[Callable[[int, Sequence[Part] | None], None]]:
        """The line of training; call the result with (steps done, parts); parts also make a plain line."""
        moving = _Moving("step", done, 0.0)
        moving.update(done, steps, None)
        with self._shown(moving):

            def show(step: int, parts: Sequence[Part] | None) -> None:
                moving.update(step, steps, parts)
                if parts is not None:
                    say = self._also if self._moves else self.line
                    say(_GAP.join(moving.plain()))

            yield show

    @property
    def _moves(self) -> bool:
        """Whether a line can be written again in place."""
        return self.console.is_terminal and not self.console.is_dumb_terminal and not self.console.quiet

    @contextmanager
    def _shown(self, moving: "_Moving") -> Iterator[None]:
        if not self._moves:
            yield
            return
        with Live(moving, console=self.console, refresh_per_second=4, transient=True):
            yield


class _Moving:
    """How far a piece of work is, as a line with a bar that is as wide as the terminal allows."""

    def __init__(self, description: str, start: int, soon: float) -> None:
        self.began = self.now = time.monotonic()  # `now` is when it was last heard of
        self.done = self.start = start
        self.total = 0  # not known yet
        self._description, self._soon = description, soon
        self._parts: Sequence[Part] = ()

    def update(self, done: int, total: int, parts: Sequence[Part] | None) -> None:
        """Hear of it. Parts stay until the next ones."""
        self.now = time.monotonic()
        self.done, self.total = done, total
        self._parts = self._parts if parts is None else parts

    def plain(self) -> list[str]:
        """Everything that is known, for a line that stays."""
        elapsed = Part(f"{clock(self.now - self.began)} elapsed")
        return [part.text for part in (self._head(), *self._parts, elapsed, *self._left())]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        elapsed = time.monotonic() - self.began
        if not self.total or elapsed < self._soon:
            return
        head, rest, length = self._fitted(options.max_width, elapsed)
        line = Text(head, no_wrap=True, overflow="crop")
        if length:
            full, stroke = length * self.done // self.total, "-" if options.ascii_only else "━"
            line.append(_GAP).append(stroke * full, "bar.complete")
            plain = console.no_color or console.color_system is None  # what is left would look like what is done
            line.append((" " if plain else stroke) * (length - full), "bar.back")
        yield line.append("".join(_GAP + text for text in rest))

    def _fitted(self, width: int, elapsed: float) -> tuple[str, list[str], int]:
        """What stands before the bar, what behind it, and its length, in `width` characters at most.

        First the bar shrinks, then what is worth least goes.
        """
        parts = [self._head(), *self._parts, Part(f"{clock(elapsed)} elapsed", 2), *self._left()]
        while True:
            room = width - sum(cell_len(part.text) + len(_GAP) for part in parts)  # for a bar, with a gap before it
            least = max(parts, key=lambda part: part.rank)
            if least.rank == 0 or room >= (_USUAL if least.rank >= ASIDE else -len(_GAP)):
                break
            parts.remove(least)
        head, *rest = (part.text for part in parts)
        over = -len(_GAP) - room
        if over > 0:  # a long name: its end, with the figures, stays
            head = head[over:]
        return head, rest, min(room, _MOST) if room >= _LEAST else 0

    def _head(self) -> Part:
        return Part(f"{self._description} {self.done}/{self.total}")

    def _left(self) -> list[Part]:
        """What is left, if anything is known of that."""
        done, left = self.done - self.start, self.total - self.done
        return [Part(f"{clock((self.now - self.began) * left / done)} left")] if done > 0 and left > 0 else []
