"""What a person sees while it runs: progress bars on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from eco_fast.console import plain_console


class Count(Protocol):
    """Shows how far a piece of work is."""

    def __call__(self, done: int, total: int, status: str | None = None) -> None: ...


_PLAIN_SECONDS = 10.0  # between two plain lines of one count


class Display:
    """Notes, counts and the training line, on one console."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or plain_console()

    def line(self, text: str) -> None:
        """Print one line, whole: long lines are wrapped by the terminal, never cut or folded."""
        self.console.print(text, soft_wrap=True)

    @contextmanager
    def count(self, description: str, start: int = 0, *, lines: bool = False) -> Iterator[Count]:
        """A bar for a piece of work that is counted; call the result with (done, total) and perhaps a status.

        On a terminal a status stays in sight until the next one. Elsewhere a plain line is printed every ten seconds
        and at the end, or with `lines` for each status. `start` is what was done before: it took none of the time.
        """
        began = last = time.monotonic()
        terminal = self.console.is_terminal
        with self._bar(disable=not terminal) as bar:
            task = bar.add_task(description, total=None, completed=start, status="")

            def show(done: int, total: int, status: str | None = None) -> None:
                nonlocal last
                now = time.monotonic()
                if terminal:
                    bar.update(task, completed=done, total=total)
                    if status is not None:
                        bar.update(task, status=status)
                elif status is not None if lines else done == total or now - last > _PLAIN_SECONDS:
                    last = now
                    said = f"  {status}" if status else ""
                    self.line(f"{description} {done}/{total}{said}{_left(now - began, done - start, total - start)}")

            yield show

    @contextmanager
    def rate(self, description: str) -> Iterator[Callable[[int, int, float], None]]:
        """A bar with MB/s; call the result with (done, total, MB/s)."""
        with self.count(description) as show:
            yield lambda done, total, rate: show(done, total, f"{rate:.0f} MB/s")

    @contextmanager
    def training(self, steps: int, done: int) -> Iterator[Callable[[int, str | None], None]]:
        """The training bar; call the result with (steps done, status); a status also makes a plain line."""
        with self.count("step", done, lines=True) as show:
            yield lambda step, status: show(step, steps, status)

    def _bar(self, *, disable: bool) -> Progress:
        return Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            console=self.console,
            refresh_per_second=4,
            disable=disable,
        )


def _left(elapsed: float, done: int, total: int) -> str:
    """What is left of a piece of work, if anything is known of that: ", 40 s left"."""
    if not 0 < done < total:
        return ""
    seconds = round(elapsed * (total - done) / done)
    hours, minutes = divmod(seconds // 60, 60)
    return (
        f", {hours} h {minutes} min left"
        if hours
        else f", {minutes} min left"
        if minutes > 2
        else f", {seconds} s left"
    )
