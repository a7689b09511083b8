"""Help texts, and the completion of commands and values in a shell."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from eco_fast.cli import app, main
from eco_fast.config import OPTIONS, load_config, recipe_names
from eco_fast.errors import Stopped
from eco_fast.evaluate.inference import PRECISIONS
from eco_fast.evaluate.published import names as published_names
from eco_fast.models import names as network_names
from eco_fast.models import spandrel_networks

HEAVY = {"torch", "numpy", "PIL", "matplotlib", "triton", "nvidia", "skimage"}
# Runs the command line and prints what of `HEAVY` it has loaded.
WATCHED = f"""
import sys
from eco_fast.cli import main
try:
    main()
except SystemExit as end:
    assert end.code in (None, 0, 2)  # 2: no command at all
print("loaded:", sorted({HEAVY} & set(sys.modules)), file=sys.stderr)
"""


def commands(command: Any, path: str = "eco-fast") -> dict[str, Any]:
    """A command and those below it, by what is typed."""
    found = {path: command}
    for name, below in getattr(command, "commands", {}).items():
        found |= commands(below, f"{path} {name}")
    return found


ALL = commands(typer.main.get_command(app))


def watched(*arguments: str, **environment: str) -> str:
    """What the command line prints; it must load nothing heavy."""
    command = [sys.executable, "-c", WATCHED, *arguments]
    result = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stderr.endswith("loaded: []\n"), result.stderr
    return result.stdout


def asking(words: str, shell: str) -> dict[str, str]:
    """The environment in which a shell asks how to go on after these words."""
    asked = {"_ECO_FAST_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": words}
    asked |= {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    return asked | {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}


def complete(words: str, shell: str = "bash") -> str:
    """What the shell is told."""
    return watched(**asking(words, shell))


@pytest.mark.parametrize("name", ALL)
def test_help_names_everything_that_can_be_typed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*name.split()[1:], "--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert f"\n    {name}" in shown or getattr(ALL[name], "commands", None), "an example on a line of its own"
    for parameter in ALL[name].params:
        text = getattr(parameter, "help", None)
        assert text and text.endswith("."), f"{name}: {parameter.name}"
        assert (parameter.metavar if parameter.param_type_name == "argument" else parameter.opts[0]) in shown
    for below in getattr(ALL[name], "commands", {}):
        assert re.search(rf"^  {below} +[A-Z].*\.$", shown, re.MULTILINE), f"the line of {below} is cut"


@pytest.mark.parametrize("name", ALL)
def test_short_help_is_the_same(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for option in ("-h", "--help"):
        with pytest.raises(SystemExit):
            main([*name.split()[1:], option])
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] != ""


def test_errors_name_every_flag_by_the_key_that_it_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    def keys(recipe: str, settings: object, flags: dict[str, object], first: object = None) -> None:
        assert flags.keys() == OPTIONS.keys()
        raise Stopped

    monkeypatch.setattr("eco_fast.config.load_config", keys)
    with pytest.raises(SystemExit) as stop:
        main(["train", "edsr-tiny"])
    assert stop.value.code == 130
    assert set(OPTIONS.values()) <= {name for parameter in ALL["eco-fast train"].params for name in parameter.opts}


def test_defaults_that_texts_name() -> None:
    texts = {f"{name} {p.name}": getattr(p, "help", "") for name, command in ALL.items() for p in command.params}
    assert f"by default {load_config('cpu-demo').run.steps}" in texts["eco-fast demo steps"]
    for name in recipe_names():
        config = load_config(name)
        assert config.run.lanes and "by default the recipe's: on" in texts["eco-fast train lanes"]
        assert f"else {config.run.out}" in texts["eco-fast train out"]


@pytest.mark.parametrize(
    "line", re.findall(r"^ +(eco-fast .*)$", "\n".join(c.epilog or "" for c in ALL.values()), re.M)
)
def test_examples_parse(line: str) -> None:
    words = shlex.split(line.partition(" > ")[0])[1:]
    name = max((name for name in ALL if f"{line} ".startswith(f"{name} ")), key=len)
    values = ALL[name].make_context(name, words[len(name.split()) - 1 :]).params
    if name == "eco-fast train" and not values["resume"] and not values["recipe"].endswith(".toml"):
        load_config(values["recipe"], values["settings"] or ())
    assert values.get("reference") in (None, *published_names())
    assert values.get("network") in (None, *network_names())


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], ["train", "--help"], ["bench", "--help"]])
def test_help_is_printed_without_loading_torch(arguments: list[str]) -> None:
    watched(*arguments)


COMPLETED = {
    "eco-fast tr": {"train"},
    "eco-fast bench ": {"kernels", "data", "step", "evaluate", "all"},
    "eco-fast train eco-e": {"eco-edsr", "eco-edsr-baseline"},
    "eco-fast recipes eco-e": {"eco-edsr", "eco-edsr-baseline"},
    "eco-fast train eco-edsr --mode eco": {"eco", "eco-centroid"},
    "eco-fast train eco-edsr --scale ": {"2", "3", "4"},
    "eco-fast eval x --precision ": set(PRECISIONS),
    "eco-fast eval x --reference ": set(published_names()),
    "eco-fast eval x --network ": {*network_names(), *spandrel_networks.names()},
    "eco-fast doctor --gpu-proof --only loops,step-t": {"loops,step-tiny"},
    "eco-fast eval runs/": set(),  # files are the shell's
    "eco-fast train ../[": set(),
}


def test_completion(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for words, expected in COMPLETED.items():
        for name, value in asking(words, "bash").items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit):
            main([])
        assert set(capsys.readouterr().out.split()) == expected, words


@pytest.mark.parametrize("words", ["train x --mode ", "eval x --reference ", "eval x --network ", "doctor --only "])
def test_nothing_heavy_is_loaded_to_complete(words: str) -> None:
    assert complete(f"eco-fast {words}").split()


def test_recipes_are_completed_with_files_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("eco-mine.toml", "other.toml", "eco-notes.txt"):
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    assert set(complete("eco-fast train ").split()) == {*recipe_names(), "eco-mine.toml", "other.toml"}


def test_other_shells_get_an_answer() -> None:
    assert "train" in complete("eco-fast tr", "zsh")
    assert complete("eco-fast tr", "fish").split()[0] == "train"


def test_bash_completes_after_installation(tmp_path: Path) -> None:
    entry_point = Path(sys.executable).parent / "eco-fast"
    if shutil.which("bash") is None or not entry_point.exists():
        pytest.skip("needs bash and the installed eco-fast")
    path = f"{entry_point.parent}{os.pathsep}{os.environ['PATH']}"

    def bash(script: str) -> list[str]:
        # bash itself must stay: a single command would take its place, and eco-fast asks which shell called it
        command = ["bash", "--norc", "-c", f"{script}\ntrue"]
        environment = {**os.environ, "HOME": str(tmp_path), "PATH": path}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split("\n")

    bash("eco-fast --install-completion")
    ask = """
        source "$HOME/.bashrc"
        ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _eco_fast_completion eco-fast; echo "${COMPREPLY[@]}"; }
        ask eco-fast upsc
        ask eco-fast train --mode eco
        ask eco-fast eval runs/
    """
    assert bash(ask)[:-1] == ["upscale", "eco-centroid eco", ""]
