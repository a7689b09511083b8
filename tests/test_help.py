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
from eco_fast.config import load_config, recipe_names
from eco_fast.evaluate.inference import PRECISIONS
from eco_fast.evaluate.published import names as published_names
from eco_fast.models import names as network_names
from eco_fast.models import spandrel_networks

COMMAND = [sys.executable, "-c", "from eco_fast.cli import main; main()"]
HEAVY = {"torch", "numpy", "PIL", "matplotlib", "triton", "nvidia", "skimage"}
# Runs the command line in this process and prints what of `HEAVY` it has loaded.
WATCHED = f"""
import sys
from eco_fast.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code
print("loaded:", sorted({HEAVY} & set(sys.modules)), file=sys.stderr)
"""


def commands(command: Any, path: str = "eco-fast") -> dict[str, Any]:
    """A command and those below it, by what is typed."""
    found = {path: command}
    for name, below in getattr(command, "commands", {}).items():
        found |= commands(below, f"{path} {name}")
    return found


ALL = commands(typer.main.get_command(app))


def run(
    *arguments: str, code: str | None = None, command: list[str] = COMMAND, **environment: str
) -> subprocess.CompletedProcess[str]:
    command = command if code is None else [sys.executable, "-c", code]
    # The width is that of the terminal.
    environment = {**os.environ, "COLUMNS": "80", **environment}
    return subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, check=True, timeout=60
    )


def complete(words: str, shell: str = "bash") -> str:
    """What the shell is told while it asks without loading anything heavy."""
    asked = {"_ECO_FAST_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": words}
    asked |= {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    asked |= {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    result = run(code=WATCHED, **asked)
    assert result.stderr == "loaded: []\n", words
    return result.stdout


@pytest.mark.parametrize("name", ALL)
def test_everything_has_a_help_text(name: str) -> None:
    command = ALL[name]
    text = (command.help or "").strip()
    assert text.endswith(".") and text[0].isupper(), text
    if name != "eco-fast":
        assert not command.get_short_help_str(60).endswith("..."), "cut in the list of commands"
    for parameter in command.params:
        text = getattr(parameter, "help", None)
        assert text and text.endswith("."), f"{name}: {parameter.name}"
        if parameter.param_type_name == "argument" or not parameter.is_flag:
            assert parameter.metavar, f"{name}: {parameter.name} shows a type of Python"


@pytest.mark.parametrize("name", ALL)
def test_help_shows_what_is_typed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """No type of Python, and no line wider than a terminal but examples."""
    with pytest.raises(SystemExit) as stop:
        main([*name.split()[1:], "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert not re.search(r"list\[|<\w+>|\{|\bPath\b|\bNone\b", text), text
    assert all(len(line) <= 80 or line.startswith("    eco-fast ") for line in text.splitlines())
    for parameter in ALL[name].params:
        if parameter.param_type_name == "argument":
            assert re.search(rf"^Usage: .*\b{parameter.metavar}\b", text), "the argument is in the usage line"


def test_defaults_that_texts_name() -> None:
    texts = {f"{name} {p.name}": getattr(p, "help", "") for name, command in ALL.items() for p in command.params}
    assert f"by default {load_config('cpu-demo').run.steps}" in texts["eco-fast demo steps"]
    for name in recipe_names():
        config = load_config(name)
        assert config.run.lanes and "by default the recipe's: on" in texts["eco-fast train lanes"]
        assert f"else {config.run.out}" in texts["eco-fast train out"]
    for key in ("eval precision", "upscale precision"):
        assert all(precision in texts[f"eco-fast {key}"] for precision in PRECISIONS)


def examples() -> list[str]:
    epilogs = "\n".join(command.epilog or "" for command in ALL.values())
    return re.findall(r"^ +(eco-fast .*)$", epilogs, re.MULTILINE)


def test_every_command_has_an_example() -> None:
    without = {name for name in ALL if not any(line == name or line.startswith(f"{name} ") for line in examples())}
    assert without == set()
    text = run("prepare", "--help").stdout
    assert "\n    eco-fast prepare --verify store\n" in text, "a line of its own"


@pytest.mark.parametrize("line", examples())
def test_examples_parse(line: str) -> None:
    words = shlex.split(line)[1:]
    name = max((name for name in ALL if line.startswith(f"{name} ")), key=len)
    values = ALL[name].make_context(name, words[len(name.split()) - 1 :]).params
    if name == "eco-fast train" and not values["recipe"].endswith(".toml"):
        assert values["recipe"] in recipe_names()
        load_config(values["recipe"], values["settings"] or ())
    assert values.get("reference") in (None, *published_names())
    assert (values.get("name") or (values.get("model") if "checkpoint" in values else None)) in (None, *network_names())


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], ["train", "--help"], ["bench", "--help"]])
def test_help_is_printed_without_loading_torch(arguments: list[str]) -> None:
    code = WATCHED.replace("assert not end.code", "assert end.code in (0, 2)")  # 2: no command at all
    assert run(*arguments, code=code).stderr.endswith("loaded: []\n")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("eco-fast tr", {"train"}),
        ("eco-fast bench ", {"kernels", "data", "step", "evaluate", "all"}),
        ("eco-fast train edsr-x", {"edsr-x2", "edsr-x3", "edsr-x4"}),
        ("eco-fast train edsr-x2 --mode eco", {"eco", "eco-centroid"}),
        ("eco-fast train edsr-x2 --lanes ", {"on", "off"}),
        ("eco-fast train edsr-x2 --scale ", {"2", "3", "4"}),
        ("eco-fast export runs/x --format b", {"basicsr"}),
        ("eco-fast export runs/x --format ", {"safetensors", "basicsr", "onnx"}),
        ("eco-fast eval x --precision ", set(PRECISIONS)),
        ("eco-fast upscale x --precision ", set(PRECISIONS)),
        ("eco-fast prepare x --precision ", {"fp32", "bf16"}),
        ("eco-fast eval x --reference ", set(published_names())),
        ("eco-fast eval x --model ", {*network_names(), *spandrel_networks.names()}),
        ("eco-fast upscale x --name rl", {"rlfn", "rlfn-s", "rlfn-ntire"}),
        ("eco-fast prepare x --model edsr-", {"edsr-baseline", "edsr-tiny"}),
        ("eco-fast doctor --gpu", {"--gpu-proof"}),
        ("eco-fast eval runs/", set()),  # files are the shell's
        ("eco-fast train /etc/", set()),
        ("eco-fast train ../[", set()),
    ],
)
def test_completion(words: str, expected: set[str]) -> None:
    assert set(complete(words).split()) == expected


@pytest.mark.parametrize("name", ALL)
def test_files_are_left_to_the_shell(name: str) -> None:
    """Whatever typer would do with a path."""
    context = ALL[name].make_context(name, [], resilient_parsing=True)
    for parameter in ALL[name].params:
        if parameter.metavar in ("DIR", "FILE", "PNG", "STORE", "IMAGE", "RUN"):
            assert parameter.shell_complete(context, "x") == []


def test_recipes_are_completed_with_files_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("edsr-mine.toml", "other.toml", "edsr-notes.txt"):
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    assert set(complete("eco-fast train ").split()) == {*recipe_names(), "edsr-mine.toml", "other.toml"}
    assert complete("eco-fast train edsr-m").split() == ["edsr-mine.toml"]


def test_other_shells_get_an_answer() -> None:
    assert '"train":"Train a network."' in complete("eco-fast tr", "zsh")
    assert set(re.findall(r'"([\w-]+)"', complete("eco-fast train x --mode k", "zsh"))) == {"kd"}
    assert complete("eco-fast eval runs/", "zsh") == "_files\n"
    assert complete("eco-fast tr", "fish").split()[0] == "train"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_of_shells(shell: str) -> None:
    assert f"_ECO_FAST_COMPLETE=complete_{shell}" in run(_ECO_FAST_COMPLETE=f"source_{shell}").stdout


@pytest.fixture
def bash(tmp_path: Path) -> Any:
    """Runs a script in bash, with a home of its own and the installed `eco-fast`."""
    entry_point = Path(sys.executable).parent / "eco-fast"
    if shutil.which("bash") is None or not entry_point.exists():
        pytest.skip("needs bash and the installed eco-fast")
    # bash itself must stay: a single command would take its place, and eco-fast asks which shell called it
    path = f"{entry_point.parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "--norc", "-c"]
    return lambda script: run(f"{script}\ntrue", command=command, HOME=str(tmp_path), PATH=path).stdout


ASK = """
ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _eco_fast_completion eco-fast; echo "${COMPREPLY[@]}"; }
ask eco-fast upsc
ask eco-fast train --mode eco
ask eco-fast eval runs/
complete -p eco-fast
"""
ANSWERS = ["upscale", "eco-centroid eco", "", "complete -o default -F _eco_fast_completion eco-fast"]


def test_bash_completes_with_the_script_that_is_shown(bash: Any) -> None:
    lines = bash(f'eval "$(eco-fast --show-completion; true)"\n{ASK}').split("\n")
    assert lines[:-1] == ANSWERS


def test_bash_completes_after_installation(bash: Any, tmp_path: Path) -> None:
    printed = bash("eco-fast --install-completion")
    assert "bash completion installed in" in printed
    assert "source" in (tmp_path / ".bashrc").read_text()
    lines = bash(f'source "$HOME/.bashrc"\n{ASK}').split("\n")
    assert lines[:-1] == ANSWERS
