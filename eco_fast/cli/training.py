"""Commands that train and look at training: `demo`, `train`, `recipes` and `compare`."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from eco_fast.cli.options import Threads, builtin, choice, command, group, modes, one_of, path, paths, recipes, scale

commands = group()


@command(commands, "demo", "Show on photographs what ECO changes.", "eco-fast demo --out runs/demo")
def demo(
    out: Annotated[Path, path("--out", "DIR", "Folder of its runs and pictures.")] = Path("runs/demo"),
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps", metavar="N", help="Updates of each network; by default 2000; the teacher has a quarter more."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier demo.")] = False,
) -> None:
    """Train a teacher, then from two seeds a vanilla and an ECO student, on scikit-image's photographs, and compare."""
    from eco_fast.commands.demo import run_demo as run

    run(out, steps=steps, force=force)


@command(
    commands,
    "train",
    "Train a network.",
    "eco-fast train edsr-tiny --mode vanilla --train photos --valid held-out --out runs/teacher",
    "eco-fast train edsr-tiny --teacher runs/teacher --train photos --valid held-out --out runs/eco",
    "eco-fast train eco-edsr --scale 4 --train DIV2K --teacher runs/teacher --set optim.lr=5e-5 --dry-run",
    "eco-fast train runs/eco --resume",
)
def train(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE", help="Name of a built-in recipe, a TOML file, or a run.", autocompletion=recipes
        ),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Set any key of the recipe, such as optim.lr=5e-4; repeatable."
        ),
    ] = None,
    train_dirs: Annotated[
        list[Path] | None,
        path(
            "--train", "DIR", "Folder of HR training images, text file of their paths, or prepared store; repeatable."
        ),
    ] = None,
    train_lr: Annotated[
        Path | None, path("--train-lr", "DIR", "Folder of LR training images; by default the bicubic of HR.")
    ] = None,
    valid: Annotated[
        list[Path] | None,
        path("--valid", "DIR", "Folder of HR validation images; repeatable, the first chooses the best checkpoint."),
    ] = None,
    teacher: Annotated[
        Path | None,
        path("--teacher", "FILE", "Run, checkpoint or weights file of the teacher; every mode but vanilla needs one."),
    ] = None,
    scale: Annotated[int | None, scale("Enlargement; by default the recipe's.")] = None,
    mode: Annotated[
        str | None,
        choice(
            "--mode",
            "MODE",
            modes,
            "What the student learns: vanilla, kd, eco-centroid, eco or alpha-sample; by default the recipe's.",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            metavar="N",
            help="Updates of the weights; by default the recipe's. Validates at every tenth of them at least.",
        ),
    ] = None,
    out: Annotated[
        Path | None, path("--out", "DIR", "Folder of the run; by default the recipe's, else runs/run.")
    ] = None,
    init: Annotated[
        Path | None,
        path(
            "--init",
            "FILE",
            "Run, checkpoint or weights file to start from, of this scale or another; the schedule starts again.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        choice(
            "--device",
            "NAME",
            one_of("auto", "cpu", "cuda"),
            "Where to train: auto, cpu or cuda; by default the recipe's: auto.",
        ),
    ] = None,
    threads: Threads = None,
    processes: Annotated[
        int,
        typer.Option(
            "--processes", metavar="N", min=1, help="Processes on this machine, one for each GPU; as with torchrun."
        ),
    ] = 1,
    lanes: Annotated[
        str | None,
        choice(
            "--lanes",
            "on|off",
            one_of("on", "off"),
            "Make batches one step ahead (on) or when they are needed (off); by default the recipe's: on.",
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse images that would be converted or left out.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the settings, the memory and the time of a step; write nothing.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint in the folder of the run.")
    ] = False,
    more: Annotated[
        int | None,
        typer.Option("--more", metavar="N", help="Resume a run, and train N steps more than it was planned for."),
    ] = None,
    stretch: Annotated[
        bool,
        typer.Option(
            "--stretch",
            help="Let schedules that depend on the number of steps jump where that changes on resume.",
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier run in the same folder.")] = False,
) -> None:
    """Train a network as a recipe says, with settings of your own on top."""
    from eco_fast.config import Config, load_config
    from eco_fast.errors import UserError

    if more is not None and (steps is not None or more < 1):
        raise UserError(f"--more {more}: take a number of steps above 0, and no --steps beside it")
    flags = {
        "data.train": [str(path) for path in train_dirs] if train_dirs else None,
        "data.train_lr": train_lr,
        "data.valid": [str(path) for path in valid] if valid else None,
        "teacher.file": teacher,
        "scale": scale,
        "mode": mode,
        "run.steps": steps,
        "run.out": out,
        "student.init": init,
        "run.device": device,
        "run.threads": threads,
        "run.lanes": lanes,
        "data.strict": True if strict else None,
    }

    def configured(first: Config | None = None) -> Config:
        return load_config(recipe, settings or (), flags, first=first)

    # By itself it is made at once: a slip is told before PyTorch is imported. Under torchrun all have to hear of it.
    config = None if "LOCAL_RANK" in os.environ else configured()
    if config is not None and processes > 1 and not dry_run:
        from eco_fast.train.launch import launch

        raise typer.Exit(launch(processes, sys.argv[1:]))
    if dry_run:
        from eco_fast.commands.dry_run import describe_run

        describe_run(config or configured())
    else:
        from eco_fast.train.start import train as run

        run(config or configured, resume=resume or more is not None, force=force, more=more or 0, stretch=stretch)


@command(
    commands,
    "recipes",
    "List the built-in recipes, or print one.",
    "eco-fast recipes",
    "eco-fast recipes eco-edsr > mine.toml",
    "eco-fast recipes --schema > schema.json",
)
def list_recipes(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="The recipe to print.", autocompletion=builtin, show_default=False),
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of all recipes, for an editor.")
    ] = False,
) -> None:
    """List the recipes of the package, print one as it is, or print the JSON schema of all recipes."""
    from eco_fast.commands import recipes as run

    if schema:
        run.print_schema()
    elif name is not None:
        run.print_recipe(name)
    else:
        run.print_list()


@command(
    commands,
    "compare",
    "Plot the validation of several runs.",
    "eco-fast compare runs/vanilla runs/eco --out compare.png",
    "eco-fast compare runs/x2 runs/x4 --set Set14",
)
def compare(
    runs: Annotated[list[Path], paths("RUN", "Folders of runs.")],
    out: Annotated[Path, path("--out", "PNG", "Picture of the curves.")] = Path("compare.png"),
    data: Annotated[
        str | None,
        typer.Option(
            "--set", metavar="NAME", help="Validation set; by default the first that the runs have in common."
        ),
    ] = None,
) -> None:
    """Compare the validation of runs: PSNR-Y in a table, and in curves over steps and over time.

    Runs of other scales or validation sets have tables and curves of their own.
    """
    from eco_fast.commands.compare import compare_runs as run

    run(runs, out, data)
