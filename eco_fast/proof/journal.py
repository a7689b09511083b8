"""`results.jsonl`: everything a proof finds, a line each, on disk before it looks for the next one.

Lines are numbered by `n`. A check begins with `begin`, says figures, and ends with `end`; `attempt` counts how often it
was begun. Without an `end` it was cut off together with the proof.
"""

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eco_fast.errors import UserError
from eco_fast.files import writing
from eco_fast.proof.outcome import CUT_OFF, Evidence, Outcome

FILE = "results.jsonl"
_UNFINISHED = ("left out", "interrupted")  # ends after which a check is made when the proof goes on

Line = dict[str, Any]
Key = tuple[str, str]  # name and device of a check


class Journal:
    """The lines of a proof; `open_journal` gives one that can be added to."""

    def __init__(self, lines: list[Line], descriptor: int | None = None) -> None:
        self.lines, self._descriptor = lines, descriptor

    def add(self, **values: object) -> Line:
        """Write a line; it is on disk when this returns."""
        assert self._descriptor is not None, "this journal is only read"
        line = json.loads(json.dumps({"n": len(self.lines), **values}, default=str))
        text = f"{json.dumps(line, ensure_ascii=False)}\n".encode()
        # One call writes the whole line, so that a process that is killed leaves all of it or nothing.
        if os.write(self._descriptor, text) != len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(self._descriptor)
        self.lines.append(line)
        return line

    def attempts(self, key: Key) -> int:
        """How often a check was begun or left out."""
        return max((line["attempt"] for line in self._of(key)), default=0)

    def settled(self, *, has_gpu: bool) -> set[Key]:
        """Checks that need not be made again; those that missed a GPU are not settled once there is one."""
        return {
            key
            for key, outcome in self.outcomes().items()
            if outcome.cut_off not in _UNFINISHED and not (has_gpu and key[1] == "cuda" and outcome.status == "not run")
        }

    def under_way(self) -> list[Line]:
        """The first lines of checks that have no end."""
        ended = {(*_key(line), line["attempt"]) for line in self.lines if "end" in line}
        return [line for line in self.lines if "begin" in line and (*_key(line), line["attempt"]) not in ended]

    def outcomes(self) -> dict[Key, Outcome]:
        """What became of every check that was asked for, in the order of their first lines.

        Of several attempts the last one counts that was not cut off with the proof or left out, if there is one.
        """
        result = {}
        for key in dict.fromkeys(_key(line) for line in self.lines if "check" in line):
            found = [_outcome(line) for line in self._of(key) if "end" in line]
            found = found or [Outcome(*key, Evidence(0), "interrupted")]
            final = [outcome for outcome in found if outcome.cut_off not in _UNFINISHED]
            result[key] = (final or found)[-1]
        return result

    def figures(self, key: Key) -> list[Line]:
        """The figures of the attempt that `outcomes` tells of; of an earlier one where that has none."""
        mine = self._of(key)
        said = [line for line in mine if "case" in line]
        ends = {line["attempt"]: line["end"] for line in mine if "end" in line}
        final = [line for line in said if ends.get(line["attempt"], "interrupted") not in _UNFINISHED]
        last = max((line["attempt"] for line in final or said), default=0)
        return [line for line in said if line["attempt"] == last]

    def _of(self, key: Key) -> list[Line]:
        return [line for line in self.lines if "check" in line and _key(line) == key]


def read_journal(out: Path) -> Journal:
    """The journal of a folder, to read.

    Raises:
        UserError: There is none, or it is not one.
    """
    file = out / FILE
    try:
        # What follows the last line feed was cut off while it was written, and never counted.
        text, _, _ = file.read_bytes().rpartition(b"\n")
        return Journal([json.loads(line) for line in text.splitlines()])
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; name the folder of a proof with --out") from error
    except ValueError as error:
        raise UserError(f"{file} is not the record of a proof ({error}); name another folder with --out") from error


@contextmanager
def open_journal(out: Path, *, resume: bool) -> Iterator[Journal]:
    """The journal of a folder, to add to; no other process can meanwhile.

    Raises:
        UserError: The folder cannot be written, holds a proof that is not to be resumed, or another proof writes there.
    """
    with writing(out, "choose another folder with --out"):
        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out / FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another proof is writing to {out}; wait for it, or choose another folder") from error
        lines = read_journal(out).lines
        if lines and not resume:
            raise UserError(f"{out} holds a proof; go on with --resume, or choose another folder with --out")
        whole = (out / FILE).read_bytes().rpartition(b"\n")
        os.ftruncate(descriptor, len(whole[0]) + len(whole[1]))
        yield Journal(lines, descriptor)
    finally:
        os.close(descriptor)


def _key(line: Line) -> Key:
    return line.get("check", ""), line.get("device", "")


def _outcome(line: Line) -> Outcome:
    evidence = Evidence(line.get("compared", 0), tuple(line.get("faults", ())), line.get("detail", ""))
    return Outcome(*_key(line), evidence, line["end"] if line["end"] in CUT_OFF else "", line.get("seconds", 0.0))
