"""`eco-fast recipes`: the recipes of the package, one of them as it is, and the JSON schema of all."""

import json
import shutil
import sys
import textwrap

from eco_fast.config import Config, find_recipe, load_config, recipe_names

_WIDEST = 100  # characters of a line that is read with ease


def print_list() -> None:
    """One line of figures for each recipe, and what it is for below."""
    width = min(_WIDEST, shutil.get_terminal_size().columns)
    print(f"{'recipe':<18} {'network':<14} scale  mode   {'steps':>7}  patches of a step")
    for name in recipe_names():
        config = load_config(name)
        data, network = config.data, f"{config.student.name:<14} x{config.scale}"
        patches = f"{data.batch} of {data.patch} x {data.patch}"
        print(f"{name:<18} {network}     {config.mode:<6} {config.run.steps:>7,}  {patches}")
        print(textwrap.indent(textwrap.fill(_purpose(name), width - 4, break_on_hyphens=False), "    "))
    print("\neco-fast recipes NAME prints one, eco-fast recipes --schema what every key means")


def print_recipe(name: str) -> None:
    """A recipe as it is, comments included.

    Raises:
        UserError: There is none of this name.
    """
    sys.stdout.write(find_recipe(name)[1])


def print_schema() -> None:
    """The JSON schema of a recipe: keys, values, defaults and what they mean."""
    print(json.dumps(Config.model_json_schema(), indent=2))


def _purpose(name: str) -> str:
    """The first line of a recipe, a comment."""
    return find_recipe(name)[1].partition("\n")[0].removeprefix("# ")
