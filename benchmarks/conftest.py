"""Options and fixtures of the benchmarks."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from contest import Contest
from recorded import Recorder
from rows import Record, Row, environment, write_figures, write_rows

from eco_fast.data.dali import load_dali
from eco_fast.errors import UserError
from eco_fast.extras import install

_ROWS = pytest.StashKey[list[Row]]()
_NOTES = pytest.StashKey[list[str]]()
_FIGURES = pytest.StashKey[list[dict[str, object]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("operations")
    group.addoption("--rows", type=Path, metavar="FILE", help="write the figures of the operations as CSV")
    group.addoption("--figures", type=Path, metavar="FILE", help="write the figures of all other benchmarks as CSV")
    group.addoption("--quick", action="store_true", help="tiny images: shows that everything runs, not how fast")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_ROWS] = []
    config.stash[_NOTES] = []
    config.stash[_FIGURES] = []


def pytest_sessionfinish(session: pytest.Session) -> None:
    file = session.config.getoption("rows")
    if file is not None:
        write_rows(file, session.config.stash[_ROWS])
    file = session.config.getoption("figures")
    if file is not None:
        write_figures(file, session.config.stash[_FIGURES])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    notes = config.stash[_NOTES]
    for note in dict.fromkeys(notes):
        terminalreporter.write_line(note)


@pytest.fixture
def record(request: pytest.FixtureRequest, benchmark: Any, quick: bool) -> Record:
    """Keeps the durations and figures of a case, prints them, and writes all at the end where that is asked for."""
    figures, recorder = request.config.stash[_FIGURES], Recorder(benchmark)
    name = request.path.stem.removeprefix("test_")

    def keep(case: str, seconds: Sequence[float], /, *packages: str, **values: object) -> None:
        print(f"\n{name}, {case}: " + ", ".join(f"{key} {value}" for key, value in values.items() if value is not None))
        row = {"benchmark": name, "case": case, **values, **environment(*packages, quick=quick)}
        figures.append(row)
        recorder(case, seconds, row)

    return keep


@pytest.fixture(scope="session")
def quick(request: pytest.FixtureRequest) -> bool:
    """Whether tiny problems are wanted."""
    return bool(request.config.getoption("quick"))


@pytest.fixture(scope="session")
def has_dali(request: pytest.FixtureRequest) -> Callable[[str], bool]:
    """Whether NVIDIA DALI is there for some contestants; a note says which ones are left out without it."""

    def found(contestants: str) -> bool:
        try:
            load_dali(contestants)
        except UserError:
            note = f"{contestants}: left out, since NVIDIA DALI is not installed; {install('dali')}"
            request.config.stash[_NOTES].append(note)
            return False
        return True

    return found


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the operations run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def contest(request: pytest.FixtureRequest, benchmark: Any, quick: bool) -> Contest:
    """Times contestants."""
    stash = request.config.stash
    return Contest(benchmark, stash[_ROWS], stash[_NOTES], quick)
