"""What a person sees while it runs: progress bars on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from eco_fast.console import plain_console

Count = Callable[[int, int], None]

_PLAIN_SECONDS = 10.0  # between two plain lines of one count


class Display:
    """Notes, counts and the training line, on one console."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or plain_console()

    def line(self, text: str) -> None:
        """Print one line, whole: long lines are wrapped by the terminal, never cut or folded."""
        self.console.print(text, soft_wrap=True)

    @contextmanager
    def count(self, description: str) -> Iterator[Count]:
        """A bar for a piece of work that is counted; call the result with (done, total)."""
        if self.console.is_terminal:
            with self._bar() as bar:
                task = bar.add_task(description, total=None, status="")
                yield lambda done, total: bar.update(task, completed=done, total=total)
            return
        started = last = time.monotonic()

        def plain(done: int, total: int) -> None:
            nonlocal last
            now = time.monotonic()
            if done == total or now - last > _PLAIN_SECONDS:
                last = now
                self.line(f"{description}: {done}/{total}{_left(now - started, done, total)}")

        yield plain

    @contextmanager
    def rate(self, description: str) -> Iterator[Callable[[int, int, float], None]]:
        """A bar with MB/s; call the result with (done, total, MB/s)."""
        if self.console.is_terminal:
            with self._bar() as bar:
                task = bar.add_task(description, total=None, status="")

                def update(done: int, total: int, rate: float) -> None:
                    bar.update(task, completed=done, total=total, status=f"{rate:.0f} MB/s")

                yield update
            return
        started = last = time.monotonic()

        def plain(done: int, total: int, rate: float) -> None:
            nonlocal last
            now = time.monotonic()
            if done == total or now - last > _PLAIN_SECONDS:
                last = now
                self.line(f"{description}: {done}/{total}, {rate:.0f} MB/s{_left(now - started, done, total)}")

        yield plain

    @contextmanager
    def training(self, steps: int, done: int) -> Iterator[Callable[[int, str | None], None]]:
        """The training bar; call the result with (steps done, status); a status also makes a plain line."""
        if self.console.is_terminal:
            with self._bar() as bar:
                task = bar.add_task("training", total=steps, completed=done, status="")

                def update(step: int, status: str | None) -> None:
                    bar.update(task, completed=step)
                    if status is not None:
                        bar.update(task, status=status)

                yield update
            return
        started = time.monotonic()

        def plain(step: int, status: str | None) -> None:
            if status is not None:
                left = _left(time.monotonic() - started, step - done, steps - done)
                self.line(f"step {step}/{steps}  {status}{left}")

        yield plain

    def _bar(self) -> Progress:
        return Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            console=self.console,
            refresh_per_second=4,
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
