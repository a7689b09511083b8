"""The configuration: recipes, settings, flags, and the errors a person sees."""

from pathlib import Path

import pytest

from eco_fast.config import config_toml, differing_keys, load_config, parse_config, recipe_names
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


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["optim.lrr=1"], ["optim.lrr", "did you mean optim.lr?"]),
        (["batch=4"], ["batch", "did you mean data.batch?"]),
        (["mode.x=1"], ["mode", "{'x': 1}"]),
        (["mode=ecco"], ["mode", "'eco'", "ecco"]),
        (["scale=5"], ["scale", "5"]),
        (["run.steps=0"], ["run.steps", "greater than 0"]),
        (["run.steps"], ["--set run.steps has no value"]),
    ],
)
def test_wrong_settings_are_named_in_one_line(settings: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        load_config("edsr-tiny", settings)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


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
