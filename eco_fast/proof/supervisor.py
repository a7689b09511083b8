"""Gives checks to a worker, one after the other, each with a limit of time; a new worker goes on where one is lost.

A fault of a GPU takes the process with it, and some hang for ever; so no check runs in the process that keeps the
record. Nothing here imports PyTorch.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from eco_fast.proof.journal import Journal
from eco_fast.proof.outcome import Evidence, Outcome
from eco_fast.proof.table import Check

LOG = "worker.log"
COMMAND = (sys.executable, "-u", "-m", "eco_fast.proof.worker")

_START = 120.0  # seconds that a worker may take to import PyTorch and to find its GPU
_LOOK = 0.2  # seconds between two looks at the clock and at signals
_KEPT = 15  # lines of a lost worker's own output that are kept with its check


class Lost(Exception):
    """The worker is gone, or has to go. `how` is one of `CUT_OFF`."""

    def __init__(self, how: str, detail: str) -> None:
        super().__init__(detail)
        self.how, self.detail = how, detail


class Worker:
    """A process that answers orders with JSON lines, see `eco_fast/proof/worker.py`."""

    def __init__(self, out: Path, command: Sequence[str]) -> None:
        self._log = out / LOG
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )
        self._log_from = self._log.stat().st_size
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def ask(self, order: dict[str, object]) -> None:
        """Give the worker an order."""
        assert self._process.stdin is not None
        self._log_from = self._log.stat().st_size
        with contextlib.suppress(BrokenPipeError):  # it has just died, which `line` will tell
            self._process.stdin.write(f"{json.dumps(order)}\n".encode())
            self._process.stdin.flush()

    def line(self) -> bytes | None:
        """Its next line; None if there is none yet.

        Raises:
            Lost: It has ended, and all that it said was read.
        """
        ended = self._process.poll()
        try:
            return self._lines.get(timeout=_LOOK)
        except queue.Empty:
            if ended is None:
                return None
        how = signal.Signals(-ended).name if ended < 0 else f"exit code {ended}"
        raise Lost("crashed", f"the worker ended with {how}")

    def end(self, *, tell: bool = False) -> str:
        """Kill it and all that it has started; returns the end of what it has printed since the last order.

        Args:
            tell: Before that let it print where it stands.
        """
        if tell and self._process.poll() is None:
            self._process.send_signal(signal.SIGUSR1)
            time.sleep(2 * _LOOK)
        with contextlib.suppress(ProcessLookupError):  # nothing of it is left
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with self._log.open("rb") as log:
            log.seek(self._log_from)
            return "\n".join(log.read().decode(errors="replace").splitlines()[-_KEPT:])

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)


class Supervisor:
    """Makes checks and writes down what they say.

    Args:
        journal: Takes every line.
        out: Folder of the proof.
        seconds: All that there are; infinite without a limit.
        is_stopped: Whether somebody asks for an end.
        console: Where lines and the clock are shown.
        command: Starts a worker.
    """

    def __init__(
        self,
        journal: Journal,
        out: Path,
        seconds: float,
        is_stopped: Callable[[], bool],
        console: Console,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._journal, self._out, self._command = journal, out, command
        self._is_stopped, self._console = is_stopped, console
        self._started = time.monotonic()
        self._end = self._started + seconds
        self._worker: Worker | None = None
        self._why_no_worker = ""

    def gpu(self) -> tuple[str | None, str]:
        """The name of the GPU that a worker sees; None, and why."""
        try:
            ready = self._start()
        except Lost as lost:
            self._lose()
            return None, lost.detail
        return ready["ready"], ready["why"]

    def make(self, check: Check, device: str, place: str) -> Outcome:
        """Make a check, or leave it out and say why. `place` is its number in the order."""
        attempt = self._journal.attempts((check.name, device)) + 1
        head: dict[str, object] = {"check": check.name, "device": device, "attempt": attempt}
        limit, begun = min(check.limit, self._left), time.monotonic()
        evidence, cut_off, more = Evidence(0, detail=self._why_left_out(check, limit)), "left out", {}
        if not evidence.detail:
            self._write(**head, begin=round(limit, 1))
            try:
                said = self._answers(head, limit, place)
                evidence, cut_off = Evidence(said["compared"], tuple(said["faults"]), said["detail"]), ""
                more = {"traceback": said["traceback"]} if "traceback" in said else {}
            except Lost as lost:
                evidence, cut_off = Evidence(0, detail=lost.detail), lost.how
                more = {"log": self._lose(tell=lost.how == "timed out")}
                if lost.how == "timed out" and limit < check.limit:  # with all of its own time it may come to an end
                    evidence, cut_off = Evidence(0, detail="the time of the proof was over"), "interrupted"
        outcome = Outcome(check.name, device, evidence, cut_off, time.monotonic() - begun)
        self._finish(head, outcome, place, **more)
        return outcome

    def leave(self, check: Check, device: str, why: str, place: str) -> Outcome:
        """Write down that a check cannot be made here."""
        attempt = self._journal.attempts((check.name, device)) + 1
        outcome = Outcome(check.name, device, Evidence(0, detail=why), "left out" if self._why_no_worker else "")
        self._finish({"check": check.name, "device": device, "attempt": attempt}, outcome, place)
        return outcome

    def close(self) -> None:
        """End the worker."""
        self._lose()

    @property
    def _left(self) -> float:
        return self._end - time.monotonic()

    def _why_left_out(self, check: Check, limit: float) -> str:
        if self._why_no_worker:
            return self._why_no_worker
        if self._is_stopped():
            return "the proof was stopped"
        return (
            f"no time: {max(0, limit):.0f} s are left, it takes {check.least} at least" if limit < check.least else ""
        )

    def _answers(self, head: dict[str, object], limit: float, place: str) -> dict[str, Any]:
        """Write down figures until the last line of a check comes, which is returned."""
        if self._worker is None:
            self._start()
        assert self._worker is not None
        limit = min(limit, self._left)
        self._worker.ask({**head, "seconds": limit})
        end = time.monotonic() + limit
        with self._console.status("", spinner="line") as status:
            while True:
                spent = limit - (end - time.monotonic())
                minutes = (time.monotonic() - self._started) / 60
                status.update(f"{place} {head['check']}, {spent:.0f} of {limit:.0f} s, minute {minutes:.1f}")
                record = self._next(end)
                if record is None:
                    continue
                if "compared" in record:
                    if record["spent"]:  # what the device has lost, a new process finds again
                        self._lose()
                    return record
                self._write(**head, **record)
                self._console.print(f"    {_shown(record)}", markup=False, highlight=False, soft_wrap=True)

    def _next(self, end: float) -> dict[str, Any] | None:
        """The worker's next answer, None if there is none yet."""
        assert self._worker is not None
        if self._is_stopped():
            raise Lost("interrupted", "the proof was stopped")
        if time.monotonic() > end:
            raise Lost("timed out", "its time was over")
        line = self._worker.line()
        if line is None:
            return None
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        known = isinstance(record, dict) and any(key in record for key in ("case", "compared", "ready"))
        return record if known else {"rubbish": line.decode(errors="replace").rstrip()[:300]}

    def _start(self) -> dict[str, Any]:
        """A new worker; returns its first line."""
        self._worker = Worker(self._out, self._command)
        end = time.monotonic() + min(_START, self._left)
        try:
            while True:
                record = self._next(end)
                if record is not None and "ready" in record:
                    return record
        except Lost as lost:
            if lost.how == "interrupted":
                raise
            if self._left <= 0:
                self._why_no_worker = "no time: it was over before a worker had started"
            else:  # the next one would not start either
                self._why_no_worker = f"no worker starts: {lost.detail}; see {self._out / LOG}"
            raise Lost("crashed", self._why_no_worker) from lost

    def _lose(self, *, tell: bool = False) -> str:
        """End the worker and return the last that it has printed."""
        if self._worker is None:
            return ""
        words = self._worker.end(tell=tell)
        self._worker = None
        return words

    def _finish(self, head: dict[str, object], outcome: Outcome, place: str, **more: object) -> None:
        found = outcome.evidence
        self._write(
            **head, end=outcome.status, seconds=round(outcome.seconds, 1), compared=found.compared,
            faults=found.faults, detail=found.detail, **more,
        )  # fmt: skip
        line = f"{place} {outcome.device:4} {outcome.name}: {outcome.status} ({outcome.seconds:.0f} s) {outcome.detail}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _write(self, **values: object) -> None:
        self._journal.add(t=round(time.monotonic() - self._started, 1), **values)


def _shown(record: dict[str, Any]) -> str:
    figures = ", ".join(f"{name} {value}" for name, value in record.items() if name != "case")
    return f"{record['case']}: {figures}" if "case" in record else figures
