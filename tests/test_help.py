"""Help texts, and the completion of commands and values in a shell."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from eco_fast.cli import app

COMMAND = [sys.executable, "-c", "from eco_fast.cli import main; main()"]


def commands(command: Any, path: str = "eco-fast") -> dict[str, Any]:
    """A command and those below it, by what is typed."""
    found = {path: command}
    for name, below in getattr(command, "commands", {}).items():
        found |= commands(below, f"{path} {name}")
    return found


ALL = commands(typer.main.get_command(app))


def complete(words: str, shell: str = "bash") -> str:
    environment = {
        "_ECO_FAST_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
        "_TYPER_COMPLETE_ARGS": words,
    }
    result = subprocess.run(
        COMMAND, env={**os.environ, **environment}, capture_output=True, text=True, check=True, timeout=60
    )
    return result.stdout


@pytest.mark.parametrize("name", ALL)
def test_everything_has_a_help_text(name: str) -> None:
    command = ALL[name]
    text = (command.help or "").strip()
    assert text.endswith(".") and text[0].isupper(), text
    if name != "eco-fast":
        assert not command.get_short_help_str(60).endswith("..."), "cut in the list of commands"
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{name}: {parameter.name}"
        if parameter.param_type_name == "option" and not parameter.is_flag:
            assert parameter.metavar, f"{name}: {parameter.name} shows a type of Python"


def test_help_is_printed_without_loading_torch() -> None:
    code = (
        "import sys\nfrom eco_fast.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n"
        "    assert end.code == 0\nassert not {'torch', 'numpy'} & set(sys.modules)"
    )
    for arguments in (["--help"], ["train", "--help"], ["bench", "--help"]):
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, timeout=60)


def test_examples_stand_in_lines_of_their_own() -> None:
    text = subprocess.run([*COMMAND, "prepare", "--help"], check=True, capture_output=True, text=True).stdout
    assert "\n    eco-fast prepare --verify store\n" in text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("eco-fast tr", {"train"}),
        ("eco-fast bench ", {"kernels", "data", "step", "evaluate", "all"}),
        ("eco-fast train edsr-x", {"edsr-x2", "edsr-x3", "edsr-x4"}),
        ("eco-fast train --mode eco", {"eco", "eco-centroid"}),
        ("eco-fast export runs/x --format b", {"basicsr"}),
        ("eco-fast eval --precision ", {"fp32", "bf16", "fp16"}),
        ("eco-fast eval --reference rcan-x4", {"rcan-x4-vanilla", "rcan-x4-eco"}),
        ("eco-fast doctor --gpu", {"--gpu-proof"}),
    ],
)
def test_completion(words: str, expected: set[str]) -> None:
    assert set(complete(words).split()) == expected


def test_recipe_files_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "edsr-mine.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    assert "edsr-mine.toml" in complete("eco-fast train edsr-m").split()


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_an_answer(shell: str) -> None:
    assert "train" in complete("eco-fast tr", "zsh")
    shown = subprocess.run([*COMMAND, "--show-completion", shell], check=True, capture_output=True, text=True).stdout
    assert "_ECO_FAST_COMPLETE" in shown


@pytest.mark.skipif(shutil.which("bash") is None or shutil.which("eco-fast") is None, reason="needs bash and eco-fast")
def test_bash_completes_with_the_script_that_is_shown() -> None:
    script = (
        "source <(eco-fast --show-completion bash); COMP_WORDS=(eco-fast upsc); COMP_CWORD=1; "
        '_eco_fast_completion eco-fast; echo "${COMPREPLY[@]}"'
    )
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "upscale"
