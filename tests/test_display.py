"""Progress: a line that fits where it is shown, and plain lines where there is no terminal."""

import io
import os
import pty
import re
import subprocess
import sys
import termios
import textwrap

import pytest
from rich.console import Console

from eco_fast import display
from eco_fast.display import ASIDE, Display, Part, _Moving

PARTS = [Part("loss 12.345"), Part("1632 patches/s", 1), Part("alpha 0.123", ASIDE), Part("lr 1.00e-03", ASIDE + 1)]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a display prints; a second passes between two looks at the clock."""
    clock = iter(range(1000))
    monkeypatch.setattr(display.time, "monotonic", lambda: float(next(clock)))
    return io.StringIO()


def test_a_count_says_a_line_in_ten_seconds_and_one_at_its_end(said: io.StringIO) -> None:
    with Display(Console(file=said)).count("checking") as show:
        for done in range(1, 14):
            show(done, 13)
    assert said.getvalue() == "checking 11/13  0:11 elapsed  0:02 left\nchecking: 13 in 13.0 s\n"


def test_a_rate_is_a_count_with_a_status(said: io.StringIO) -> None:
    with Display(Console(file=said, width=200)).rate("images") as show:
        for done in range(1, 12):
            show(done, 12, 90.4)
    assert said.getvalue() == "images 11/12  90 MB/s  0:11 elapsed  0:01 left\n"


def test_what_takes_no_time_or_does_nothing_is_not_mentioned() -> None:
    """Not by a bar on a terminal either."""
    for terminal in (False, True):
        file = io.StringIO()
        with Display(Console(file=file, force_terminal=terminal)).count("checking") as show:
            show(5, 5)
        with Display(Console(file=file, force_terminal=terminal)).rate("images"):
            pass
        assert "checking" not in file.getvalue() and "images" not in file.getvalue()


def test_training_says_a_line_for_every_status(said: io.StringIO) -> None:
    """Steps made before it was resumed took none of its time."""
    kept: list[str] = []
    with Display(Console(file=said), kept.append).training(40, 20) as show:
        show(21, None)
        show(22, [Part("loss 1")])
        show(40, [Part("loss 2")])
    assert said.getvalue() == (
        "step 22/40  loss 1  0:03 elapsed  0:27 left\n"  # two looks before the first call
        "step 40/40  loss 2  0:04 elapsed\n"
    )
    assert kept == said.getvalue().splitlines()


def test_on_a_terminal_the_lines_of_training_go_elsewhere() -> None:
    kept: list[str] = []
    file = io.StringIO()
    with Display(Console(file=file, force_terminal=True), kept.append).training(4, 0) as show:
        show(2, [Part("loss 1"), Part("lr 2", ASIDE)])
    assert kept == ["step 2/4  loss 1  lr 2  0:00 elapsed  0:00 left"]
    assert "\n" not in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue()).strip()


def moving(steps: int, done: int, elapsed: float, monkeypatch: pytest.MonkeyPatch) -> _Moving:
    line = _Moving("step", 0, 0.0)
    monkeypatch.setattr(display.time, "monotonic", lambda: line.began + elapsed)
    line.update(done, steps, PARTS)
    return line


def shown(line: _Moving, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system="standard", no_color=False)
    with console.capture() as capture:
        console.print(line)
    return re.sub(r"\x1b\[[0-9;]*m", "", capture.get())


@pytest.mark.parametrize("steps", [500, 125_000, 1_000_000])
def test_the_line_of_training_fits(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 80 columns step, total, loss, speed, elapsed and left; at 60 step, total, loss and left."""
    line = moving(steps, steps // 3, 12_345.0, monkeypatch)
    most = [f"step {steps // 3}/{steps}", "loss 12.345", "left"]
    for width in (60, 80, 100, 120, 200):
        text = shown(line, width)
        assert text.count("\n") == 1 and len(text) <= width + 1, text
        assert all(part in text for part in most), text
        assert width < 80 or ("1632 patches/s" in text and "3:25:45 elapsed" in text), text
        assert width < 120 or ("alpha 0.123" in text and "━━━━━━━━━━" in text), text
    assert "lr 1.00e-03" in text


def test_the_bar_shrinks_before_any_text_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    line = moving(500, 100, 10.0, monkeypatch)
    texts = {width: shown(line, width) for width in range(200, 30, -1)}
    bars = {width: text.count("━") for width, text in texts.items()}
    for name in ("patches/s", "elapsed"):
        first = max(width for width, text in texts.items() if name not in text)
        assert bars[first + 1] < 4 and first < 70
    assert bars[200] == 40 and min(bars[width] for width in range(80, 200)) >= 4


def test_a_long_name_leaves_the_figures_in_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    line = _Moving("x" * 100 + ".png", 0, 0.0)
    line.update(3, 8, None)
    assert ".png 3/8" in shown(line, 60) and len(shown(line, 60)) <= 61


SCRIPT = """
    import time
    from eco_fast.display import Display, Part
    display = Display()
    with display.training(500, 0) as show:
        show(100, [Part("loss 12.345"), Part("1632 patches/s", 1)])
        time.sleep(0.4)
        display.line("a line between")
    display.line("the end")
"""


@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
def test_in_a_real_terminal(term: str) -> None:
    """Of 80 columns: one line that moves and is gone at the end; in a dumb one plain lines."""
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 80))
    environment = {**os.environ, "TERM": term, "PYTHONPATH": os.pathsep.join(sys.path)}
    for name in ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR"):
        environment.pop(name, None)
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(SCRIPT)], stdout=follower, env=environment)
    os.close(follower)
    written = b""
    try:
        while block := os.read(leader, 65536):
            written += block
    except OSError:  # Linux ends a terminal so
        pass
    os.close(leader)
    assert process.wait() == 0
    text = written.decode()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert re.search(r"step 100/500 .*loss 12.345  1632 patches/s  0:00 elapsed  0:00 left", plain)
    assert "a line between" in plain and plain.rstrip().endswith("the end")
    assert ("\x1b[2K" in text) == (term != "dumb")
    assert all(len(line) <= 80 for line in re.split(r"[\r\n]+", plain))


def test_lines_end_between_words_on_a_terminal_and_nowhere_in_a_pipe() -> None:
    path = "/a/long/path/that/a/line/cannot/hold/and/that/is/never/cut/into/pieces"
    text = f"checkpoint: {path}; best by validation: step 400 of a run that was long"
    for terminal in (True, False):
        file = io.StringIO()
        Display(Console(file=file, width=40, force_terminal=terminal, highlight=False)).line(text)
        shown = file.getvalue()
        assert path in shown and " ".join(shown.split()) == text
        assert (shown.count("\n") > 1) == terminal
        assert all(len(line) <= 40 for line in shown.splitlines() if terminal and path not in line)
