"""The commands: parse, call, print. Everything heavy is imported inside them, so that `--help` is quick."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, get_args

import typer

from eco_fast import __version__
from eco_fast.errors import Stopped, UserError


def _examples(*lines: str) -> str:
    """The end of a command's help; the mark keeps the lines apart."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


app = typer.Typer(
    help="Train and evaluate single-image super-resolution networks with ECO (Lee & Heo, AAAI 2024).",
    no_args_is_help=True,
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


def _starting(names: Iterable[str], typed: str) -> list[str]:
    return [name for name in names if name.startswith(typed)]


def _recipes(incomplete: str) -> list[str]:
    from eco_fast.config import recipe_names

    files = sorted(str(path) for path in Path().glob(f"{incomplete}*.toml"))
    return _starting(recipe_names(), incomplete) + files


def _modes(incomplete: str) -> list[str]:
    from eco_fast.config import Mode

    return _starting(get_args(Mode), incomplete)


def _precisions(incomplete: str) -> list[str]:
    return _starting(("fp32", "bf16", "fp16"), incomplete)


def _formats(incomplete: str) -> list[str]:
    return _starting(("safetensors", "basicsr", "onnx"), incomplete)


def _published(incomplete: str) -> list[str]:
    from eco_fast.evaluate.published import names

    return _starting(names(), incomplete)


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


@app.command(short_help="Train and compare on photographs.", epilog=_examples("eco-fast demo --out runs/demo"))
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the demo's runs and pictures.")] = Path(
        "runs/demo"
    ),
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", help="Updates per network; by default 1500.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier demo.")] = False,
) -> None:
    """Train a teacher, a vanilla and an ECO student on photographs, and compare them."""
    from eco_fast.demo import run_demo

    run_demo(out, steps=steps, force=force)


@app.command(
    short_help="Train a network.",
    epilog=_examples(
        "eco-fast train edsr-tiny --mode vanilla --train photos --valid held-out --out runs/teacher",
        "eco-fast train edsr-tiny --teacher runs/teacher --train photos --valid held-out --out runs/eco",
        "eco-fast train runs/eco/config.toml --resume",
    ),
)
def train(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="TOML file, or the name of a built-in recipe.", autocompletion=_recipes),
    ],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set any key of the recipe; repeatable.")
    ] = None,
    train_dirs: Annotated[
        list[Path] | None,
        typer.Option(
            "--train", metavar="DIR", help="Folder of HR training images, or a text file of paths; repeatable."
        ),
    ] = None,
    train_lr: Annotated[
        Path | None, typer.Option("--train-lr", metavar="DIR", help="Folder of LR training images.")
    ] = None,
    valid: Annotated[
        Path | None, typer.Option("--valid", metavar="DIR", help="Folder of HR validation images.")
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option("--teacher", metavar="FILE", help="Weights, checkpoint or run of the teacher.")
    ] = None,
    scale: Annotated[
        int | None, typer.Option("--scale", metavar="2|3|4", help="Enlargement; by default the recipe's.")
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            "--mode",
            metavar="MODE",
            autocompletion=_modes,
            help="vanilla, kd, eco-centroid, eco or alpha-sample; by default the recipe's.",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", help="Updates of the weights; by default the recipe's.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder of the run; by default runs/run.")
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option("--init", metavar="FILE", help="Weights to start from, of this scale or another; fresh schedule."),
    ] = None,
    lanes: Annotated[
        str | None, typer.Option("--lanes", metavar="on|off", help="on, or off: make batches when they are needed.")
    ] = None,
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


@app.command(
    "eval",
    short_help="Evaluate a network beside bicubic.",
    epilog=_examples(
        "eco-fast eval runs/eco --data Set5 --data Set14 --pictures pictures",
        "eco-fast eval rlfn_s_x4.pth --model rlfn-s --scale 4 --data Set5",
    ),
)
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(metavar="RUN", help="Run, checkpoint or weights file.")],
    data: Annotated[
        list[Path],
        typer.Option("--data", metavar="DIR", help="Folder of HR images, or with HR/ and LR_bicubic/Xs/; repeatable."),
    ],
    lr: Annotated[
        Path | None, typer.Option("--lr", metavar="DIR", help="Folder of LR images; without it LR is made from HR.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Network of a bare weights file.")
    ] = None,
    scale: Annotated[int | None, typer.Option("--scale", metavar="N", help="Scale of a bare weights file.")] = None,
    precision: Annotated[
        str, typer.Option("--precision", metavar="NAME", autocompletion=_precisions, help="fp32, bf16 or fp16.")
    ] = "fp32",
    raw: Annotated[bool, typer.Option("--raw", help="Take a run's weights instead of their average.")] = False,
    ensemble: Annotated[bool, typer.Option("--ensemble", help="Mean over eight orientations, 8 x slower.")] = False,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            metavar="ROW",
            autocompletion=_published,
            help="Print published figures too: edsr-x4-eco, ...",
        ),
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


@app.command(
    short_help="Plot the validation of several runs.",
    epilog=_examples("eco-fast compare runs/vanilla runs/eco --out compare.png"),
)
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of runs.")],
    out: Annotated[Path, typer.Option("--out", metavar="PNG", help="Takes the curves.")] = Path("compare.png"),
) -> None:
    """Compare the validation of runs, over steps and over time."""
    from eco_fast.compare import compare_runs

    compare_runs(runs, out)


@app.command(short_help="Enlarge images.", epilog=_examples("eco-fast upscale photos --model runs/eco --out large"))
def upscale(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Images, folders, or text files of paths.")],
    model: Annotated[Path, typer.Option("--model", metavar="FILE", help="Run, checkpoint or weights file.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder that takes NAME_xS.png.")],
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Network of a bare weights file.")] = None,
    scale: Annotated[int | None, typer.Option("--scale", metavar="N", help="Scale of a bare weights file.")] = None,
    precision: Annotated[
        str, typer.Option("--precision", metavar="NAME", autocompletion=_precisions, help="fp32, bf16 or fp16.")
    ] = "fp32",
    tile: Annotated[
        int | None, typer.Option("--tile", metavar="N", help="LR pixels of a tile's side; by default as memory allows.")
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


@app.command(short_help="Write weights for others.", epilog=_examples("eco-fast export runs/eco --format onnx"))
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run, checkpoint or weights file.")],
    kind: Annotated[
        str,
        typer.Option(
            "--format", metavar="FORMAT", autocompletion=_formats, help="safetensors, basicsr (.pth) or onnx."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="By default NETWORK-xSCALE in the current folder.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Take a run's weights instead of their average.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file.")] = False,
) -> None:
    """Write the weights of a run in a format of others."""
    from eco_fast.export import export as run_export

    run_export(run, kind, out, raw=raw, force=force)


@app.command(
    short_help="Decode training images into a store.",
    epilog=_examples(
        "eco-fast prepare DIV2K --scale 2,3,4 --out store",
        "eco-fast prepare DIV2K --scale 2 --teacher runs/teacher --out store",
        "eco-fast prepare --verify store",
    ),
)
def prepare(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="DIR", help="Folders of HR images, or text files of paths.", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder of the store.")] = None,
    scales: Annotated[str, typer.Option("--scale", metavar="N", help="2, 3 or 4, or several: 2,3,4.")] = "2",
    lr: Annotated[
        Path | None, typer.Option("--train-lr", metavar="DIR", help="Folder of LR images instead of the bicubic.")
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option("--teacher", metavar="FILE", help="Weights whose SR is stored too.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Network of a bare weights file.")
    ] = None,
    precision: Annotated[
        str, typer.Option("--precision", metavar="NAME", help="Of the teacher: fp32 or bf16.")
    ] = "fp32",
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


@app.command(short_help="Show what is in a store.", epilog=_examples("eco-fast data store --sheet sheet.png"))
def data(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Folder of a prepared store.")],
    sheet: Annotated[Path | None, typer.Option("--sheet", metavar="FILE", help="Write a contact sheet as PNG.")] = None,
) -> None:
    """Show what is in a prepared store."""
    from eco_fast.train.store_commands import show_store

    show_store(store, sheet)


@app.command(
    short_help="Say what is installed and used.",
    epilog=_examples("eco-fast doctor", "eco-fast doctor --gpu-proof --out proof"),
)
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    gpu_proof: Annotated[
        bool,
        typer.Option(
            "--gpu-proof",
            help="Check kernels and training on the GPU, run all benchmarks, write a report; without a GPU, in a few"
            " minutes, what can be shown without one.",
        ),
    ] = False,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Takes the report, rows and plots.")] = Path(
        "runs/gpu-proof"
    ),
) -> None:
    """Say what is installed, what is used for what and why, and what to install."""
    if gpu_proof:
        from eco_fast.proof.run import gpu_proof as prove

        prove(out)
        return
    from eco_fast.doctor import doctor as run

    run(as_json=as_json)


bench = typer.Typer(
    help="Measure how fast things are, against what they replace. Needs the source tree.", no_args_is_help=True
)
app.add_typer(bench, name="bench")

_Csv = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write the rows to this file.")]
_Plot = Annotated[Path | None, typer.Option("--plot", metavar="PNG", help="Draw the rows into this file.")]
_Quick = Annotated[bool, typer.Option("--quick", help="Tiny problems: shows that everything runs, not how fast.")]


@bench.command("kernels", short_help="Operations against what they replace.")
def bench_kernels(
    csv: _Csv = None,
    plot: _Plot = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Report on the code compiled for each architecture; needs no GPU.")
    ] = False,
    quick: _Quick = False,
) -> None:
    """The operations of eco_kernels against eager and compiled PyTorch and other ways to do the same."""
    if offline:
        from eco_fast.bench import report_kernels

        report_kernels(csv)
    else:
        _bench("kernels", csv, plot, quick)


@bench.command("data", short_help="Data path and preparation.")
def bench_data(csv: _Csv = None, plot: _Plot = None, quick: _Quick = False) -> None:
    """Patches per second of every source against a PyTorch DataLoader; `prepare` against plain decoding."""
    _bench("data", csv, plot, quick)


@bench.command("step", short_help="Training steps.")
def bench_step(csv: _Csv = None, plot: _Plot = None, quick: _Quick = False) -> None:
    """Training steps: switch by switch from plain PyTorch to everything on, modes against each other."""
    _bench("step", csv, plot, quick)


@bench.command("evaluate", short_help="Metrics, evaluation, tiles.")
def bench_evaluate(csv: _Csv = None, plot: _Plot = None, quick: _Quick = False) -> None:
    """Metrics against scikit-image, evaluation against inference, tiles against whole images."""
    _bench("evaluate", csv, plot, quick)


def _bench(name: str, csv: Path | None, plot: Path | None, quick: bool) -> None:
    from eco_fast.bench import bench_suite

    state = bench_suite(name, csv, plot, quick=quick)
    if state != "ran":
        print(f"{name}: {state}")


@bench.command("all", short_help="All of these, with plots.")
def bench_all(
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Takes rows and plots.")] = None,
    quick: _Quick = False,
) -> None:
    """All of these, with rows and plots in a folder; on 2 CPU cores half an hour."""
    from eco_fast.bench import bench_all as run

    run(out, quick=quick)
