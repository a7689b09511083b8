"""The documentation names what exists: keys, defaults, recipes, commands, files."""

import csv
import re
import shlex
import statistics
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
from pydantic import BaseModel

from eco_fast.cli import app
from eco_fast.config import Config, load_config, parse_config, recipe_names
from eco_fast.evaluate.published import published
from eco_fast.proof.run import REPORT_SECONDS
from eco_fast.proof.table import TABLE

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = ROOT / "docs" / "recipes.md"

# Words that stand for something in a usage line, and what click has to see in their place.
PLACEHOLDERS = {"N": "1", "...": None}

EAGER = {"--install-completion", "--show-completion"}  # act while they are parsed


def leaves(model: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Dotted keys and values, as TOML has them; tables that are a value, such as options, stay whole."""
    found: dict[str, Any] = {}
    plain = model.model_dump(mode="json")
    for name in type(model).model_fields:
        value = getattr(model, name)
        found |= leaves(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else {prefix + name: plain[name]}
    return found


def tables(text: str) -> Iterator[list[dict[str, str]]]:
    """The tables of a page: rows by the names of their columns, backticks around a whole cell taken off."""
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in block.splitlines()]
        header, _, *body = rows
        yield [dict(zip(header, map(unquoted, row), strict=True)) for row in body]


def unquoted(cell: str) -> str:
    whole = re.fullmatch(r"`([^`]*)`", cell)
    return whole[1] if whole else cell


def rows_with(column: str) -> list[dict[str, str]]:
    """The rows of all tables of the recipe page that begin with a column of this name."""
    return [row for table in tables(RECIPES.read_text("utf-8")) for row in table if next(iter(row)) == column]


def commands(text: str) -> list[str]:
    """The command lines of a page: in code blocks, indented or fenced, and in backticks; usage marks taken off."""
    text = re.sub(r"\s*\\\n\s*", " ", text)
    blocks = re.findall(r"^```.*?^```", text, re.MULTILINE | re.DOTALL)
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    blocks += re.findall(r"^ {4,}(.+)$", text, re.MULTILINE)
    blocks += [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]
    found = re.findall(r"^((?:eco-fast|torchrun .*-m eco_fast) .*)$", "\n".join(blocks), re.MULTILINE)
    return [re.sub(r"\[((?:-|[A-Z]+ \.\.\.)[^\]]*)\]", r"\1", line) for line in found]


def parse(line: str) -> None:
    """Let click parse a command line as it would before it runs it; raises whatever click raises."""
    words = shlex.split(line.partition(" > ")[0], comments=True)  # where it goes is the shell's
    words = words[words.index("eco_fast") + 1 :] if "eco_fast" in words else words[1:]
    words = [PLACEHOLDERS.get(word, word) for word in words]
    for choice in alternatives([word for word in words if word is not None]):
        command: Any = typer.main.get_command(app)
        while choice and choice[0] in getattr(command, "commands", {}):
            command = command.commands[choice.pop(0)]
        assert not choice or not hasattr(command, "commands") or choice[0].startswith("-"), f"no command {choice[0]}"
        if not choice:
            continue  # only the name of a command
        if at_once := EAGER & set(choice):
            assert at_once <= {option for parameter in command.params for option in parameter.opts}
            continue
        values = command.make_context("eco-fast", choice).params
        check_values(values)


def alternatives(words: list[str]) -> Iterator[list[str]]:
    """One list of words for each of `a|b|c`."""
    at = next((i for i, word in enumerate(words) if re.fullmatch(r"[a-z]+(\|[a-z]+)+", word)), None)
    if at is None:
        yield words
        return
    for word in words[at].split("|"):
        yield [*words[:at], word, *words[at + 1 :]]


def check_values(values: Mapping[str, Any]) -> None:
    """Recipes, settings and published rows that a command line names must exist."""
    if "recipe" in values:
        recipe, settings = values["recipe"], values["settings"] or ()
        if not recipe.endswith(".toml") and not values["resume"]:  # which goes on in a run's folder
            assert recipe in recipe_names(), f"no recipe {recipe}"
        load_config("edsr-tiny", settings)
        load_config("edsr-tiny", (), {"mode": values["mode"], "scale": values["scale"]})
    if values.get("reference"):
        published(values["reference"])


def test_every_key_is_documented_and_no_other() -> None:
    documented = [row["key"] for row in rows_with("key")]
    assert len(documented) == len(set(documented))
    assert set(documented) == leaves(Config()).keys()


def test_documented_defaults_are_those_of_the_code() -> None:
    defaults = leaves(Config())
    for row in rows_with("key"):
        cell = row["default"]
        documented = None if cell == "none" else tomllib.loads(f"value = {cell}")["value"]
        assert documented == defaults[row["key"]], row["key"]


def test_every_recipe_is_listed_with_its_settings() -> None:
    rows = rows_with("recipe")
    assert sorted(row["recipe"] for row in rows) == recipe_names()
    for row in rows:
        config = load_config(row["recipe"])
        optim, data = config.optim, config.data
        listed = (row["network"], row["optimiser"], float(row["lr"]))
        assert listed == (config.student.name, optim.name, optim.lr), row["recipe"]
        numbers = tuple(int(row[column]) for column in ("scale", "patch", "batch", "steps"))
        assert numbers == (config.scale, data.patch, data.batch, config.run.steps), row["recipe"]


def test_the_example_recipes_load() -> None:
    examples = [
        example
        for page in PAGES
        for example in re.findall(r"^```toml\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    ]
    assert examples
    for example in examples:
        parse_config(tomllib.loads(example), "an example")


def test_the_command_lines_in_recipes_parse() -> None:
    for recipe in (ROOT / "eco_fast" / "recipes").glob("*.toml"):
        for line in re.findall(r"^# \w+: (eco-fast .*)$", recipe.read_text("utf-8"), re.MULTILINE):
            parse(line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_line_parses(page: Path) -> None:
    for line in commands(page.read_text("utf-8")):
        try:
            parse(line)
        except Exception as error:
            pytest.fail(f"{page.name}: {line}: {error}")


def test_command_lines_are_found() -> None:
    page = "Text\n\n    eco-fast data STORE [--sheet FILE]  # note\n\nand `eco-fast\nbench kernels|data --quick`.\n"
    page += "```\neco-fast train eco-edsr \\\n    --steps N\n```\n    torchrun -m eco_fast train eco-edsr ...\n"
    found = commands(page)
    assert found == [
        "eco-fast train eco-edsr --steps N",
        "eco-fast data STORE --sheet FILE  # note",
        "torchrun -m eco_fast train eco-edsr ...",
        "eco-fast bench kernels|data --quick",
    ]
    for line in found:
        parse(line)


@pytest.mark.parametrize(
    "line",
    [
        "trian x",
        "train edsr-x9",
        "train eco-edsr --stepz 3",
        "train eco-edsr --steps many",
        "train eco-edsr --set data.bach=1",
        "train eco-edsr --mode ecco",
        "data a b",
        "data --sheet a",
        "eval a --data b --reference edsr-x9",
    ],
)
def test_a_wrong_command_line_is_refused(line: str) -> None:
    with pytest.raises(Exception, match=r"\w"):
        parse(f"eco-fast {line}")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if not re.match(r"[a-z]+:", target):
            file, _, heading = target.partition("#")
            linked = page.parent / file if file else page
            assert linked.exists(), f"{page.name}: {target}"
            assert not heading or heading in headings(linked), f"{page.name}: {target}"


def headings(page: Path) -> set[str]:
    """Anchors of the headings of a page, as GitHub makes them."""
    lines = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


def test_the_example_network_is_one() -> None:
    """It is executed as it stands on the page, and keeps the promises of the page."""
    page = (ROOT / "docs" / "new_network.md").read_text("utf-8")
    example = next(code for code in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S) if "class Plain" in code)
    names: dict[str, Any] = {}
    exec(example, names)
    for scale in (2, 3, 4):
        network = names["Plain"](scale, blocks=4, channels=16)
        sr = network(torch.zeros(2, 3, 5, 7))
        assert (sr.shape, sr.dtype) == ((2, 3, 5 * scale, 7 * scale), torch.float32)
        assert (network.scale, network.receptive_radius) == (scale, 6)


def test_bytes_of_the_kernels_are_those_of_the_compile_report() -> None:
    """The rows of `docs/kernels.md` that name a specialisation, for an H100, and the formula beside each."""
    reported = {row["specialisation"]: row for row in figures("compile_report.csv") if row["arch"] == "sm_90"}
    page = (ROOT / "docs" / "kernels.md").read_text("utf-8")
    rows = [row for table in tables(page) for row in table if "specialisation" in row]
    assert rows
    values = 16 * 3 * 192**2
    for row in rows:
        bytes_ = int(row["bytes"].replace(",", ""))
        terms = [re.fullmatch(r"(\d*) ?N(?: / (\d+))?", term) for term in row["formula"].split(" + ")]
        assert bytes_ == sum(int(term[1] or 1) * values // int(term[2] or 1) for term in terms if term), row
        assert all(terms) and float(row["floor in us"]) == pytest.approx(bytes_ / 3.35e6, abs=0.005)
        found = reported[row["specialisation"]]
        assert (int(found["bytes"]), float(found["floor_us"])) == (bytes_, float(row["floor in us"]))


def test_times_of_the_kernels_are_those_that_were_measured() -> None:
    page = (ROOT / "docs" / "kernels.md").read_text("utf-8")
    (rows,) = (table for table in tables(page) if "speed of a copy" in table[0])
    measured = {row["case"]: row for row in figures("h200/kernel-speed.csv")}
    for operation, *told in (row.values() for row in rows):
        small, large = (measured[f"{operation.replace('`', '')}, batch {batch}"] for batch in (16, 1024))
        share = f"{float(large['percent_of_copy']):.0f} %"
        assert told == [small["us"], small["floor_us"], large["us"], large["floor_us"], share]


def figures(name: str) -> list[dict[str, str]]:
    """The rows of a file of `benchmarks/results`."""
    with (ROOT / "benchmarks" / "results" / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_estimates_are_what_their_script_prints(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "paper_on_one_gpu.md").read_text("utf-8")
    exec(re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)[0], {"__name__": "estimate"})
    printed = capsys.readouterr().out
    assert printed.count("\n") == 9 and printed in page


def test_the_schedule_of_the_proof() -> None:
    """The table of docs/gpu_proof.md is that of the code, and what it says of nine minutes follows from it."""
    (rows,) = (table for table in tables((ROOT / "docs" / "gpu_proof.md").read_text("utf-8")) if "limit s" in table[0])
    ends = {row["check"]: row for row in figures("h200/checks.csv")}
    total, told = 0, []
    for check in TABLE:
        where = {("cuda",): "GPU", ("cpu",): "CPU", ("cuda", "cpu"): "GPU, CPU"}[check.devices]
        total += check.limit if "cuda" in check.devices else 0
        so_far = str(total) if "cuda" in check.devices else ""
        end = ends.get(check.name, {"status": ""})
        took = f"{float(end['seconds']):.0f}" if end["status"] == "passed" else end["status"]
        told.append([check.name, where, str(check.least), str(check.limit), so_far, took, check.shows])
    assert [list(row.values()) for row in rows] == told
    assert sum(check.limit for check in TABLE[:6]) + REPORT_SECONDS <= 9 * 60 < sum(check.limit for check in TABLE[:7])
    assert 23 < total / 60 < 24


def test_where_the_proofs_training_ends_on_a_cpu() -> None:
    """docs/gpu_proof.md tells the mean and the spread of the seeds that a GPU's runs are compared with."""
    page = " ".join((ROOT / "docs" / "gpu_proof.md").read_text("utf-8").split())
    told = re.search(r"eco ([\d.]+), vanilla ([\d.]+)\), whose seeds lie up to ([\d.]+) dB apart", page)
    rows = figures("learns_cpu.csv")
    ends = [[float(row["set5_psnr_y"]) for row in rows if row["case"] == mode] for mode in ("eco", "vanilla")]
    means = [f"{statistics.mean(end):.3f}" for end in ends]
    assert told and list(told.groups()) == [*means, f"{max(max(end) - min(end) for end in ends):.2f}"]
