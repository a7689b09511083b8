"""The commands: parse, call, print. Everything heavy is imported inside them, so that `--help` is quick."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from eco_fast import __version__
from eco_fast.errors import Stopped, UserError

app = typer.Typer(
    help="Train and evaluate single-image super-resolution networks with ECO (Lee & Heo, AAAI 2024).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main(arguments: list[str] | None = None) -> None:
    """Run a command; a `UserError` becomes one line on stderr and exit code 2."""
    try:
        app(args=arguments, prog_name="eco-fast")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stop:
        print(stop, file=sys.stderr)
        sys.exit(130)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"eco-fast {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="TOML file, or the name of a built-in recipe.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set any key of the recipe; repeatable.")
    ] = None,
    train_dirs: Annotated[
        list[Path] | None,
        typer.Option("--train", help="Folder of HR training images, or a text file of paths; repeatable."),
    ] = None,
    train_lr: Annotated[Path | None, typer.Option("--train-lr", help="Folder of LR training images.")] = None,
    valid: Annotated[Path | None, typer.Option("--valid", help="Folder of HR validation images.")] = None,
    teacher: Annotated[
        Path | None, typer.Option("--teacher", help="Weights, checkpoint or run of the teacher.")
    ] = None,
    scale: Annotated[int | None, typer.Option("--scale", help="2, 3 or 4.")] = None,
    mode: Annotated[str | None, typer.Option("--mode", help="vanilla, kd, eco-centroid, eco or alpha-sample.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Updates of the weights.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the run.")] = None,
    init: Annotated[
        Path | None, typer.Option("--init", help="Weights to start from, of this scale or another; fresh schedule.")
    ] = None,
    lanes: Annotated[str | None, typer.Option("--lanes", help="on, or off: make batches when they are needed.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse images that would be converted or left out.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the settings, the memory and the time of a step; write nothing.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint of the run.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a run in the same folder.")] = False,
) -> None:
    """Train a network."""
    from eco_fast.config import load_config

    flags = {
        "data.train": [str(path) for path in train_dirs] if train_dirs else None,
        "data.train_lr": train_lr,
        "data.valid": valid,
        "teacher.file": teacher,
        "scale": scale,
        "mode": mode,
        "run.steps": steps,
        "run.out": out,
        "student.init": init,
        "run.lanes": None if lanes is None else {"on": True, "off": False}.get(lanes, lanes),
        "data.strict": True if strict else None,
    }
    config = load_config(recipe, settings or (), flags)
    if dry_run:
        from eco_fast.train.dry_run import describe_run

        describe_run(config)
        return
    from eco_fast.train.start import train as run_training

    run_training(config, resume=resume, force=force)


@app.command("eval")
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="Run, checkpoint or weights file.")],
    data: Annotated[
        list[Path], typer.Option("--data", help="Folder of HR images, or with HR/ and LR_bicubic/Xs/; repeatable.")
    ],
    lr: Annotated[Path | None, typer.Option("--lr", help="Folder of LR images; without it LR is made from HR.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Network of a bare weights file.")] = None,
    scale: Annotated[int | None, typer.Option("--scale", help="Scale of a bare weights file.")] = None,
    precision: Annotated[str, typer.Option("--precision", help="fp32, bf16 or fp16.")] = "fp32",
    raw: Annotated[bool, typer.Option("--raw", help="Take a run's weights instead of their average.")] = False,
    ensemble: Annotated[bool, typer.Option("--ensemble", help="Mean over eight orientations, 8 x slower.")] = False,
    reference: Annotated[
        str | None, typer.Option("--reference", metavar="ROW", help="Print published figures too: edsr-x4-eco, ...")
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures as JSON.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write those of every image.")] = None,
    pictures: Annotated[
        Path | None, typer.Option("--pictures", metavar="DIR", help="Write side-by-side pictures.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse images that would be converted.")] = False,
) -> None:
    """Evaluate a network: PSNR-Y and SSIM-Y beside bicubic."""
    from eco_fast.evaluate.command import evaluate_checkpoint

    evaluate_checkpoint(
        checkpoint,
        data,
        lr_dir=lr,
        model=model,
        scale=scale,
        precision=precision,
        raw=raw,
        ensemble=ensemble,
        reference=reference,
        json_file=json,
        csv_file=csv,
        pictures=pictures,
        strict=strict,
    )


@app.command()
def prepare(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Folders of HR images, or text files of paths.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the store.")] = None,
    scales: Annotated[str, typer.Option("--scale", help="2, 3 or 4, or several: 2,3,4.")] = "2",
    lr: Annotated[Path | None, typer.Option("--train-lr", help="Folder of LR images instead of the bicubic.")] = None,
    teacher: Annotated[Path | None, typer.Option("--teacher", help="Weights whose SR is stored too.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Network of a bare weights file.")] = None,
    precision: Annotated[str, typer.Option("--precision", help="Of the teacher: fp32 or bf16.")] = "fp32",
    allow_16bit: Annotated[bool, typer.Option("--allow-16bit", help="Round 16-bit images to 8 bit.")] = False,
    verify: Annotated[
        Path | None, typer.Option("--verify", metavar="STORE", help="Only read and check everything in a store.")
    ] = None,
) -> None:
    """Decode training images once into a store, with LR and the teacher's SR; finish or update one."""
    from eco_fast.train.store_commands import prepare_store, verify_store

    if verify is not None:
        verify_store(verify)
        return
    if not folders or out is None:
        raise UserError("name folders of images and the store: eco-fast prepare DIR --scale 2 --out STORE")
    prepare_store(
        folders,
        _scales(scales),
        out,
        lr_dir=lr,
        teacher_file=teacher,
        teacher_name=model,
        precision=precision,
        allow_16bit=allow_16bit,
    )


def _scales(text: str) -> list[int]:
    parts = text.replace(",", " ").split()
    if not parts or not all(part in ("2", "3", "4") for part in parts):
        raise UserError(f"--scale {text} is not made of 2, 3 and 4; write --scale 2,3,4")
    return sorted({int(part) for part in parts})


@app.command()
def data(
    store: Annotated[Path, typer.Argument(help="Folder of a prepared store.")],
    sheet: Annotated[Path | None, typer.Option("--sheet", metavar="FILE", help="Write a contact sheet as PNG.")] = None,
) -> None:
    """Show what is in a prepared store."""
    from eco_fast.train.store_commands import show_store

    show_store(store, sheet)


@app.command()
def upscale(
    images: Annotated[list[Path], typer.Argument(help="Images, folders, or text files of paths.")],
    model: Annotated[Path, typer.Option("--model", help="Run, checkpoint or weights file.")],
    out: Annotated[Path, typer.Option("--out", help="Folder that takes NAME_xS.png.")],
    name: Annotated[str | None, typer.Option("--name", help="Network of a bare weights file.")] = None,
    scale: Annotated[int | None, typer.Option("--scale", help="Scale of a bare weights file.")] = None,
    precision: Annotated[str, typer.Option("--precision", help="fp32, bf16 or fp16.")] = "fp32",
    tile: Annotated[
        int | None, typer.Option("--tile", help="LR pixels of a tile's side; by default as memory allows.")
    ] = None,
    ensemble: Annotated[bool, typer.Option("--ensemble", help="Mean over eight orientations, 8 x slower.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Write pictures beside bicubic too.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files.")] = False,
) -> None:
    """Enlarge images with a network, to PNG."""
    from eco_fast.upscale import upscale as run

    run(
        images,
        model,
        out,
        name=name,
        scale=scale,
        precision=precision,
        tile=tile,
        ensemble=ensemble,
        compare=compare,
        force=force,
    )


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder of the demo's runs and pictures.")] = Path("runs/demo"),
    steps: Annotated[int | None, typer.Option("--steps", help="Updates per network.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier demo.")] = False,
) -> None:
    """Train a teacher, a vanilla and an ECO student on photographs, and compare them."""
    from eco_fast.demo import run_demo

    run_demo(out, steps=steps, force=force)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run, checkpoint or weights file.")],
    kind: Annotated[str, typer.Option("--format", help="safetensors, basicsr (.pth) or onnx.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="By default NETWORK-xSCALE in the current folder.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Take a run's weights instead of their average.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file.")] = False,
) -> None:
    """Write the weights of a run in a format of others."""
    from eco_fast.export import export as run_export

    run_export(run, kind, out, raw=raw, force=force)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    out: Annotated[Path, typer.Option("--out", metavar="PNG", help="Takes the curves.")] = Path("compare.png"),
) -> None:
    """Compare the validation of runs, over steps and over time."""
    from eco_fast.compare import compare_runs

    compare_runs(runs, out)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what is installed, what is used for what and why, and what to install."""
    from eco_fast.doctor import doctor as run

    run(as_json=as_json)


bench = typer.Typer(help="Measure how fast things are.", no_args_is_help=True)
app.add_typer(bench, name="bench")


@bench.command("kernels")
def bench_kernels(
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write the rows to this file.")] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Report on the code compiled for each architecture; needs no GPU.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny images: shows that all runs, not how fast.")] = False,
) -> None:
    """Time the operations of eco_kernels against eager and compiled PyTorch and other alternatives."""
    from eco_fast.bench import bench_kernels as run

    run(csv, offline=offline, quick=quick)


_Csv = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write the rows to this file.")]
_Quick = Annotated[bool, typer.Option("--quick", help="Tiny problems: shows that all runs, not how fast.")]


@bench.command("data")
def bench_data(csv: _Csv = None, quick: _Quick = False) -> None:
    """Patches per second of every source, and `prepare`; needs ECO_FAST_TESTDATA."""
    from eco_fast.bench import bench_suite

    bench_suite("data", csv, quick=quick)


@bench.command("step")
def bench_step(csv: _Csv = None, quick: _Quick = False) -> None:
    """Training steps against bare ones, modes against each other, default settings against plain PyTorch."""
    from eco_fast.bench import bench_suite

    bench_suite("step", csv, quick=quick)


@bench.command("evaluate")
def bench_evaluate(csv: _Csv = None, quick: _Quick = False) -> None:
    """Metrics against scikit-image, evaluation against inference, tiles against whole images."""
    from eco_fast.bench import bench_suite

    bench_suite("evaluate", csv, quick=quick)
