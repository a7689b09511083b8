"""The configuration: recipes, settings, flags, and the errors a person sees."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from eco_fast.cli import main
from eco_fast.config import config_toml, differing_keys, find_recipe, load_config, parse_config, recipe_names
from eco_fast.errors import UserError


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_of_the_package_loads(name: str) -> None:
    """Its default scale is x2, and `--scale` chooses another."""
    assert load_config(name).scale == 2
    assert load_config(name, flags={"scale": 4}).scale == 4


def test_later_sources_win(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("scale = 3\n[optim]\nlr = 0.1\neps = 0.5\n[run]\nsteps = 7\n")
    config = load_config(recipe, ["optim.lr=0.2", "run.steps=8", "student.name=rlfn"], {"run.steps": 9, "mode": None})
    assert (config.scale, config.optim.lr, config.optim.eps, config.run.steps) == (3, 0.2, 0.5, 9)
    assert (config.student.name, config.mode) == ("rlfn", "eco")


def test_the_resolved_configuration_reads_back_to_the_same_values(tmp_path: Path) -> None:
    config = load_config(
        "edsr-tiny", ["student.options={blocks=2}", "data.train=['a', 'b']"], {"data.valid": Path("v")}
    )
    copy = tmp_path / "config.toml"
    copy.write_text(config_toml(config))
    assert load_config(copy) == config


KINDS = "take one of vanilla, kd, eco-centroid, eco, alpha-sample"


@pytest.mark.parametrize(
    ("settings", "flags", "message"),
    [
        ([], {"mode": "eko"}, f"--mode eko: {KINDS}; did you mean eco?"),
        ([], {"run.steps": 0}, "--steps 0: take a number above 0"),
        ([], {"scale": 5}, "--scale 5: take one of 2, 3, 4"),
        ([], {"run.lanes": "maybe"}, "--lanes maybe: take true (on) or false (off)"),
        ([], {"run.threads": -1}, "--threads -1: take 0 or more"),
        (["scale=3"], {"scale": 5}, "--scale 5: take one of 2, 3, 4"),
        (["mode=x"], {}, f"--set mode=x: {KINDS}"),
        (["optim.lr=abc"], {}, "--set optim.lr=abc: take a number"),
        (["run.steps=1.5"], {}, "--set run.steps=1.5: take a whole number"),
        (["optim.ema=1"], {}, "--set optim.ema=1: take a number below 1"),
        (["optim.betas=[0.9]"], {}, "--set optim.betas=[0.9]: take two numbers, such as [0.9, 0.99]"),
        (["run.graph=maybe"], {}, "--set run.graph=maybe: take auto or true (on) or false (off)"),
        (["optim=3"], {}, "--set optim=3: take a table of keys"),
        (["student.options=3"], {}, "--set student.options=3: take a table, such as {blocks = 4}"),
        (["data.train=3"], {}, "--set data.train=3: take a list"),
        (["optim={lrr=1}"], {}, "--set optim={lrr=1}: there is no key optim.lrr; did you mean optim.lr?"),
        (["optim.lrr=1"], {}, "--set optim.lrr=1: there is no key optim.lrr; did you mean optim.lr?"),
        (["batch=4"], {}, "--set batch=4: there is no key batch; did you mean data.batch?"),
        (["mode.x=1"], {}, "--set mode.x=1: there is no key mode.x; did you mean mode?"),
        (["run.steps"], {}, "--set run.steps has no value; write --set run.steps=VALUE"),
    ],
)
def test_a_wrong_value_is_named_as_it_was_typed(settings: list[str], flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        load_config("edsr-tiny", settings, flags)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('mode = "eko"', f'mode = "eko" in RECIPE: {KINDS}; did you mean eco?'),
        ("[optim]\nlr = -1", "optim.lr = -1 in RECIPE: take a number above 0"),
        ("[data]\nbacth = 1", "data.bacth = 1 in RECIPE: there is no key data.bacth; did you mean data.batch?"),
    ],
)
def test_a_wrong_value_of_the_recipe_names_the_recipe(text: str, message: str, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(text)
    with pytest.raises(UserError) as error:
        load_config(recipe, ["run.seed=1"], {"scale": 3})
    assert str(error.value) == message.replace("RECIPE", str(recipe))


def test_one_folder_needs_no_list(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('[data]\ntrain = "photos"\n')
    assert load_config(recipe).data.train == load_config("edsr-tiny", ["data.train=photos"]).data.train
    assert load_config(recipe).data.train == [Path("photos")]


@pytest.mark.parametrize(
    ("settings", "flags", "every"),
    [
        ([], {}, 1000),  # the recipe's
        ([], {"run.steps": 500}, 50),
        (["run.steps=500"], {}, 50),
        ([], {"run.steps": 3}, 1),
        ([], {"run.steps": 100_000}, 1000),  # the recipe validates more often
        (["run.valid_every=200"], {"run.steps": 500}, 200),
    ],
)
def test_steps_of_the_command_line_are_validated_ten_times(
    settings: list[str], flags: dict[str, Any], every: int
) -> None:
    assert load_config("edsr-tiny", settings, flags).run.valid_every == every


def test_the_schema_describes_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["recipes", "--schema"])
    schema = json.loads(capsys.readouterr().out)
    tables = [schema, *schema["$defs"].values()]
    keys = [key for table in tables for key in table["properties"].items()]
    assert len(keys) > 60
    for name, key in keys:
        described = schema["$defs"][key["$ref"].rpartition("/")[2]] if "$ref" in key else key
        assert described["description"].endswith("."), name
    assert all(table["additionalProperties"] is False for table in tables)  # an editor marks what a run would refuse
    train = schema["$defs"]["DataConfig"]["properties"]["train"]
    assert [kind["type"] for kind in train["anyOf"]] == ["string", "array"]


def test_recipes_are_listed_and_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["recipes"])
    listed = capsys.readouterr().out
    assert max(map(len, listed.splitlines())) <= 80
    for name in recipe_names():
        config = load_config(name)
        patch = f"{config.data.batch} of {config.data.patch} x {config.data.patch}"
        row = (name, config.student.name, f"x{config.scale}", config.mode, f"{config.run.steps:,}", *patch.split())
        assert row in [tuple(line.split()) for line in listed.splitlines()]
        with pytest.raises(SystemExit):
            main(["recipes", name])
        text = capsys.readouterr().out
        assert text == find_recipe(name)[1] and tomllib.loads(text)
        purpose = text.partition("\n")[0].removeprefix("# ")
        assert purpose in " ".join(listed.split())


def test_a_missing_recipe_lists_the_built_in_ones() -> None:
    with pytest.raises(UserError, match="edsr-tiny"):
        load_config("no-such-recipe")


def test_a_recipe_with_the_scale_in_its_name_is_told_its_new_one() -> None:
    with pytest.raises(UserError, match=r"recipe edsr-baseline-x3 is now written eco-edsr-baseline --scale 3"):
        load_config("edsr-baseline-x3")


def test_broken_toml_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("scale = = 2")
    with pytest.raises(UserError, match=r"broken\.toml is not valid TOML"):
        load_config(broken)


def test_differing_keys_leave_out_what_does_not_change_the_numbers() -> None:
    ours = parse_config({"optim": {"lr": 0.1}, "run": {"out": "a", "keep_last": 1}}, "here")
    theirs = parse_config({"optim": {"lr": 0.2}, "run": {"out": "b", "keep_last": 2}}, "there")
    assert differing_keys(ours, theirs) == ["optim.lr (0.1 here, 0.2 there)"]


def test_the_folder_of_a_run_is_its_recipe(tmp_path: Path) -> None:
    config = load_config("edsr-tiny", flags={"run.steps": 7})
    (tmp_path / "config.toml").write_text(config_toml(config))
    assert load_config(tmp_path) == config
    with pytest.raises(UserError, match=r"recipe edsr-tny not found; did you mean edsr-tiny\?"):
        load_config("edsr-tny")
