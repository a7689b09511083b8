"""The process that makes the checks: reads names from its input, answers with a JSON line per figure.

    python -m eco_fast.proof.worker OUT

An order is `{"check": name, "device": device, "attempt": number, "seconds": limit}`; the answers are figures, then one
line with `compared`, `faults` and `detail`. The first line says which GPU is there. What anything else prints goes to
the error output, which the supervisor keeps as `worker.log`.
"""

import faulthandler
import gc
import importlib
import json
import os
import queue
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch

from eco_fast.commands.bench import BENCHMARKS
from eco_fast.proof.outcome import Evidence, NotRun
from eco_fast.proof.stage import Stage
from eco_fast.proof.table import SCRATCH, TABLE, Check
from eco_fast.proof.warm_kernels import CacheCounter

Say = Callable[[dict[str, Any]], None]


def main() -> None:
    """Answer orders until the input ends."""
    say, out = _speaker(_own_output()), Path(sys.argv[1])
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # the supervisor asks where a check hangs
    sys.path.append(str(BENCHMARKS))  # its modules are imported by their bare names, also by their processes
    orders, counter = _orders(), CacheCounter()
    say({"ready": _gpu(), "why": why_no_gpu()})
    while True:
        order = orders.get()
        check = next(check for check in TABLE if check.name == order["check"])
        before = counter.hits, counter.misses
        last = perform(check, order, out, say)
        if (counter.hits, counter.misses) != before:
            say({"case": "kernels", "hits": counter.hits - before[0], "misses": counter.misses - before[1]})
        say(last)


def perform(check: Check, order: dict[str, Any], out: Path, say: Say) -> dict[str, Any]:
    """Make a check. What it raises is a fault, with its place and its traceback, and the next check goes on."""
    started = time.monotonic()
    last: dict[str, Any] = {}
    try:
        with _scratch(out, order) as scratch, _settings_kept():
            stage = Stage(order["device"], out, scratch, order["seconds"], say)
            evidence = _function(check)(stage, **check.arguments)
    except NotRun as reason:
        evidence = Evidence(0, detail=str(reason))
    except Exception as error:
        evidence = Evidence(0, (_told(error),))
        last["traceback"] = traceback.format_exc()
    last |= {"compared": evidence.compared, "faults": evidence.faults, "detail": evidence.detail}
    return {**last, "seconds": round(time.monotonic() - started, 2), "spent": not _is_fit()}


def why_no_gpu() -> str:
    """Why PyTorch sees no GPU; empty where it sees one."""
    if torch.cuda.is_available():
        return ""
    return "PyTorch is a CPU build" if torch.version.cuda is None else "PyTorch sees no CUDA device"


def _gpu() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _function(check: Check) -> Callable[..., Evidence]:
    module, _, function = check.function.partition(":")
    try:
        found = importlib.import_module(f"eco_fast.proof.{module}")
    except ModuleNotFoundError as error:
        if error.name != f"eco_fast.proof.{module}":
            raise
        if not BENCHMARKS.is_dir():
            raise NotRun(f"{BENCHMARKS} is missing: this measures with the source tree") from error
        found = importlib.import_module(module)
    result: Callable[..., Evidence] = getattr(found, function)
    return result


@contextmanager
def _scratch(out: Path, order: dict[str, Any]) -> Iterator[Path]:
    folder = out.absolute() / SCRATCH / f"{order['check']}-{order['device']}-{order['attempt']}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _settings_kept() -> Iterator[None]:
    """What a check sets for the whole process ends with it."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    threads = torch.get_num_threads()
    before = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = before


def _told(error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {text} ({place.filename}, {place.name}, line {place.lineno})"


def _is_fit() -> bool:
    """Leave nothing behind for the next check; False where the device takes no more work from this process."""
    gc.collect()
    if "torch._dynamo" in sys.modules:  # importing it takes seconds
        torch.compiler.reset()
    if torch.cuda.is_available():
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except Exception:
            traceback.print_exc()
            return False
    return True


def _own_output() -> TextIO:
    """The output, for answers alone: what else writes to it, libraries in C too, goes to the error output."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _speaker(answers: TextIO) -> Say:
    def say(record: dict[str, Any]) -> None:
        answers.write(json.dumps(record, default=str) + "\n")
        answers.flush()

    return say


def _orders() -> "queue.SimpleQueue[dict[str, Any]]":
    """Orders as they come. When the supervisor is gone, however it ended, this process and its children end too."""
    orders: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            orders.put(json.loads(line))
        os.killpg(os.getpid(), signal.SIGKILL)

    threading.Thread(target=read, daemon=True).start()
    return orders


if __name__ == "__main__":
    main()
