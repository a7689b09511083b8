"""The commands: parse, call, print. Everything heavy is imported inside them, so that `--help` is quick."""

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperCommand

from eco_fast import __version__
from eco_fast.errors import Stopped, UserError

app = typer.Typer(
    help="Train and evaluate single-image super-resolution networks with ECO (Lee & Heo, AAAI 2024).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
bench = typer.Typer(
    help="Measure how fast things are, against what they replace. Needs the source tree.", no_args_is_help=True
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


class _Command(TyperCommand):
    """Its help shows arguments by their names alone: newer versions of typer add braces and types of Python."""

    def get_help(self, ctx: Any) -> str:
        text = re.sub(r"\{([A-Z]+)\}", r"\1", super().get_help(ctx))
        return re.sub(r"(?m)^(  [A-Z]+)( <\S+>)", lambda found: found[1] + " " * len(found[2]), text)


def _command(
    group: typer.Typer, name: str, short_help: str, *examples: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a command; `short_help` is its line in the list of commands, the docstring opens its own help."""
    lines = "\n".join(f"  {example}" for example in examples)
    epilog = f"\b\nExamples:\n{lines}" if examples else None  # the mark keeps the lines apart
    return group.command(name, cls=_Command, short_help=short_help, epilog=epilog)


def _starting(names: Iterable[str], typed: str) -> list[str]:
    return [name for name in names if name.startswith(typed)]


def _one_of(*names: str) -> Callable[[str], list[str]]:
    """Completes these."""

    def complete(incomplete: str) -> list[str]:
        return _starting(names, incomplete)

    return complete


def _files(incomplete: str) -> list[str]:
    """Leaves them to the shell, which completes files where it gets no answer; typer's own may be in its way."""
    return []


def _path(option: str, metavar: str, help: str) -> Any:
    return typer.Option(option, metavar=metavar, autocompletion=_files, help=help)


def _recipes(incomplete: str) -> list[str]:
    """Those of the package, and files here; paths to other folders are left to the shell."""
    from eco_fast.config import recipe_names

    return _starting([*recipe_names(), *sorted(path.name for path in Path().glob("*.toml"))], incomplete)


def _modes(incomplete: str) -> list[str]:
    from eco_fast.config import Mode

    return _starting(get_args(Mode), incomplete)


def _checks(incomplete: str) -> list[str]:
    from eco_fast.proof.table import TABLE

    head, comma, last = incomplete.rpartition(",")
    return [f"{head}{comma}{name}" for name in _starting([check.name for check in TABLE], last)]


def _published(incomplete: str) -> list[str]:
    from eco_fast.evaluate.published import names

    return _starting(names(), incomplete)


# Not asked of the modules that know them: these import torch, and completion must be quick.
_NETWORKS = _one_of(
    "edsr", "edsr-baseline", "edsr-tiny", "rcan", "rlfn", "rlfn-s", "rlfn-ntire", "swinir", "swinir-light"
)
_PRECISIONS = _one_of("fp32", "bf16", "fp16")

_Scale = Annotated[
    int | None,
    typer.Option(
        "--scale", metavar="2|3|4", autocompletion=_one_of("2", "3", "4"), help="Scale of a bare weights file."
    ),
]
_Precision = Annotated[
    str,
    typer.Option(
        "--precision", metavar="NAME", autocompletion=_PRECISIONS, help="Arithmetic of the network: fp32, bf16 or fp16."
    ),
]
_Raw = Annotated[bool, typer.Option("--raw", help="Take a run's weights themselves instead of their average.")]
_Ensemble = Annotated[bool, typer.Option("--ensemble", help="Take the mean over eight orientations; 8 times as slow.")]
_Csv = Annotated[Path | None, _path("--csv", "FILE", "Write the rows to this file as CSV.")]
_Plot = Annotated[Path | None, _path("--plot", "PNG", "Draw the rows as PNG; of kernels a roofline too.")]
_Quick = Annotated[bool, typer.Option("--quick", help="Tiny problems: shows that everything runs, not how fast.")]


def _network(option: str) -> Any:
    return typer.Option(
        option, metavar="NAME", autocompletion=_NETWORKS, help="Network of a bare weights file, such as edsr-baseline."
    )


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


@_command(app, "demo", "Train and compare three networks on photographs.", "eco-fast demo --out runs/demo")
def demo(
    out: Annotated[Path, _path("--out", "DIR", "Folder of its runs and pictures.")] = Path("runs/demo"),
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", help="Updates of each network; by default 1500.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier demo.")] = False,
) -> None:
    """Train a teacher, a vanilla and an ECO student on photographs that come with scikit-image, and compare them."""
    from eco_fast.commands.demo import run_demo

    run_demo(out, steps=steps, force=force)


@_command(
    app,
    "train",
    "Train a network.",
    "eco-fast train edsr-tiny --mode vanilla --train photos --valid held-out --out runs/teacher",
    "eco-fast train edsr-tiny --teacher runs/teacher --train photos --valid held-out --out runs/eco",
    "eco-fast train eco-edsr --train DIV2K --teacher runs/teacher --set optim.lr=5e-5 --dry-run",
    "eco-fast train runs/eco/config.toml --resume",
)
def train(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="Name of a built-in recipe, or a TOML file.", autocompletion=_recipes),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Set any key of the recipe, such as optim.lr=5e-4; repeatable."
        ),
    ] = None,
    train_dirs: Annotated[
        list[Path] | None,
        _path(
            "--train", "DIR", "Folder of HR training images, text file of their paths, or prepared store; repeatable."
        ),
    ] = None,
    train_lr: Annotated[
        Path | None,
        _path("--train-lr", "DIR", "Folder of LR training images; by default the bicubic of HR."),
    ] = None,
    valid: Annotated[Path | None, _path("--valid", "DIR", "Folder of HR validation images.")] = None,
    teacher: Annotated[
        Path | None,
        _path("--teacher", "FILE", "Run, checkpoint or weights file of the teacher; every mode but vanilla needs one."),
    ] = None,
    scale: Annotated[
        int | None,
        typer.Option(
            "--scale",
            metavar="2|3|4",
            autocompletion=_one_of("2", "3", "4"),
            help="Enlargement; by default the recipe's.",
        ),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            "--mode",
            metavar="MODE",
            autocompletion=_modes,
            help="What the student learns: vanilla, kd, eco-centroid, eco or alpha-sample; by default the recipe's.",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", help="Updates of the weights; by default the recipe's.")
    ] = None,
    out: Annotated[
        Path | None,
        _path("--out", "DIR", "Folder of the run; by default the recipe's, else runs/run."),
    ] = None,
    init: Annotated[
        Path | None,
        _path(
            "--init",
            "FILE",
            "Run, checkpoint or weights file to start from, of this scale or another; the schedule begins anew.",
        ),
    ] = None,
    lanes: Annotated[
        str | None,
        typer.Option(
            "--lanes",
            metavar="on|off",
            autocompletion=_one_of("on", "off"),
            help="Make batches one step ahead (on) or when they are needed (off); by default the recipe's: on.",
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
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier run in the same folder.")] = False,
) -> None:
    """Train a network as a recipe says, with settings of your own on top."""
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
        from eco_fast.commands.dry_run import describe_run

        describe_run(config)
        return
    from eco_fast.train.start import train as run_training

    run_training(config, resume=resume, force=force)


@_command(
    app,
    "eval",
    "Evaluate a network beside bicubic.",
    "eco-fast eval runs/eco --data Set5 --data Set14 --pictures pictures",
    "eco-fast eval rlfn_s_x4.pth --model rlfn-s --scale 4 --data Set5",
    "eco-fast eval runs/edsr-x4 --data Set5 --ensemble --reference edsr-x4-eco",
)
def evaluate(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="RUN", autocompletion=_files, help="Run, checkpoint or weights file.")
    ],
    data: Annotated[
        list[Path],
        _path("--data", "DIR", "Folder of HR images, or one with HR/ and LR_bicubic/X2/, X3/, X4/; repeatable."),
    ],
    lr: Annotated[Path | None, _path("--lr", "DIR", "Folder of LR images; by default the bicubic of HR.")] = None,
    model: Annotated[str | None, _network("--model")] = None,
    scale: _Scale = None,
    precision: _Precision = "fp32",
    raw: _Raw = False,
    ensemble: _Ensemble = False,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            metavar="ROW",
            autocompletion=_published,
            help="Print the figures of a published network too, such as edsr-x4-eco.",
        ),
    ] = None,
    json: Annotated[Path | None, _path("--json", "FILE", "Write the figures of every set as JSON.")] = None,
    csv: Annotated[Path | None, _path("--csv", "FILE", "Write the figures of every image as CSV.")] = None,
    pictures: Annotated[
        Path | None,
        _path("--pictures", "DIR", "Write bicubic, the network's image and HR side by side."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse images that would be converted.")] = False,
) -> None:
    """Measure PSNR-Y in dB and SSIM-Y of a network, beside those of bicubic enlargement."""
    from eco_fast.commands.evaluate import evaluate_checkpoint

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


@_command(
    app,
    "compare",
    "Plot the validation of several runs.",
    "eco-fast compare runs/vanilla runs/eco --out compare.png",
)
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", autocompletion=_files, help="Folders of runs.")],
    out: Annotated[Path, _path("--out", "PNG", "Picture of the curves.")] = Path("compare.png"),
) -> None:
    """Compare the validation of runs: a table, and curves of PSNR-Y over steps and over time."""
    from eco_fast.commands.compare import compare_runs

    compare_runs(runs, out)


@_command(
    app,
    "upscale",
    "Enlarge images.",
    "eco-fast upscale photos --model runs/eco --out large",
    "eco-fast upscale a.png b.jpg --model rlfn_s_x4.pth --name rlfn-s --scale 4 --out large --tile 256 --compare",
)
def upscale(
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE", autocompletion=_files, help="Images, folders, or text files of paths."),
    ],
    model: Annotated[Path, _path("--model", "FILE", "Run, checkpoint or weights file.")],
    out: Annotated[Path, _path("--out", "DIR", "Folder that takes NAME_x2.png and so on.")],
    name: Annotated[str | None, _network("--name")] = None,
    scale: _Scale = None,
    precision: _Precision = "fp32",
    tile: Annotated[
        int | None,
        typer.Option("--tile", metavar="N", help="Side of a tile in LR pixels; by default as large as memory allows."),
    ] = None,
    ensemble: _Ensemble = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Write pictures of the results beside bicubic too.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there already.")] = False,
) -> None:
    """Enlarge images with a network and write them as PNG."""
    from eco_fast.commands.upscale import upscale as run

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


@_command(
    app,
    "export",
    "Write weights for others.",
    "eco-fast export runs/eco --format safetensors --out eco.safetensors",
    "eco-fast export runs/eco --format onnx",
)
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", autocompletion=_files, help="Run, checkpoint or weights file.")],
    kind: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            autocompletion=_one_of("safetensors", "basicsr", "onnx"),
            help="safetensors, basicsr (a .pth file) or onnx.",
        ),
    ],
    out: Annotated[
        Path | None,
        _path("--out", "FILE", "By default NETWORK-xSCALE with the ending of the format, here."),
    ] = None,
    raw: _Raw = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there already.")] = False,
) -> None:
    """Write the weights of a run in a format that other programs read."""
    from eco_fast.commands.export import export as run_export

    run_export(run, kind, out, raw=raw, force=force)


@_command(
    app,
    "prepare",
    "Decode training images into a store.",
    "eco-fast prepare DIV2K --scale 2,3,4 --out store",
    "eco-fast prepare DIV2K --scale 2 --teacher runs/teacher --out store",
    "eco-fast prepare --verify store",
)
def prepare(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="DIR",
            autocompletion=_files,
            help="Folders of HR images, or text files of paths.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path | None, _path("--out", "DIR", "Folder of the store; one that is there is updated.")] = None,
    scales: Annotated[
        str, typer.Option("--scale", metavar="2,3,4", help="Scales of the LR images, one or several.")
    ] = "2",
    lr: Annotated[
        Path | None,
        _path("--train-lr", "DIR", "Folder of LR images; by default the bicubic of HR."),
    ] = None,
    teacher: Annotated[
        Path | None,
        _path("--teacher", "FILE", "Run, checkpoint or weights file of a teacher whose images are stored too."),
    ] = None,
    model: Annotated[str | None, _network("--model")] = None,
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            metavar="NAME",
            autocompletion=_one_of("fp32", "bf16"),
            help="Arithmetic of the teacher: fp32 or bf16.",
        ),
    ] = "fp32",
    allow_16bit: Annotated[
        bool, typer.Option("--allow-16bit", help="Round images of 16 bit to 8 instead of refusing them.")
    ] = False,
    verify: Annotated[
        Path | None,
        _path("--verify", "STORE", "Only read everything in a store and check it."),
    ] = None,
) -> None:
    """Decode training images once into a store, with LR and a teacher's images; finish or update one."""
    from eco_fast.commands.prepare import prepare_store, verify_store

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


@_command(app, "data", "Show what is in a store.", "eco-fast data store --sheet sheet.png")
def data(
    store: Annotated[Path, typer.Argument(metavar="STORE", autocompletion=_files, help="Folder of a prepared store.")],
    sheet: Annotated[Path | None, _path("--sheet", "FILE", "Draw a contact sheet of it as PNG.")] = None,
) -> None:
    """Show how many images of what sizes are in a prepared store."""
    from eco_fast.commands.prepare import show_store

    show_store(store, sheet)


@_command(
    app,
    "doctor",
    "Say what is installed and used; prove it on a GPU.",
    "eco-fast doctor",
    "eco-fast doctor --gpu-proof --minutes 9 --out proof --pack proof.tar.xz",
    "eco-fast doctor --gpu-proof --resume --out proof --only loops,step-tiny",
    "eco-fast doctor --warm-kernels sm_90 --out kernels.tar.xz",
)
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False,
    gpu_proof: Annotated[
        bool,
        typer.Option(
            "--gpu-proof",
            help="Check kernels and training on the GPU, measure them, write a report; without a GPU, in a few"
            " minutes, what can be shown without one.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        _path("--out", "PATH", "Folder of the proof, by default runs/gpu-proof; with --warm-kernels the archive."),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", metavar="N", help="End the proof after these, with its report.")
    ] = None,
    only: Annotated[
        str, typer.Option("--only", metavar="A,B", autocompletion=_checks, help="Make only these checks.")
    ] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the proof that is in --out.")] = False,
    cpu: Annotated[bool, typer.Option("--cpu", help="Make the checks of the CPU beside a GPU too.")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Only write the report of what is in --out, say after a power cut.")
    ] = False,
    pack: Annotated[Path | None, _path("--pack", "FILE", "Write everything into one archive (tar.xz).")] = None,
    kernel_cache: Annotated[
        Path | None,
        _path("--kernel-cache", "FILE", "Archive of compiled kernels, made by --warm-kernels, to begin with."),
    ] = None,
    warm_kernels: Annotated[
        str | None,
        typer.Option(
            "--warm-kernels",
            metavar="SM",
            autocompletion=_one_of("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"),
            help="Compile all kernels for these architectures, such as sm_80,sm_90, into an archive; needs no GPU.",
        ),
    ] = None,
) -> None:
    """Say what is installed, what is used for what and why, and what to install."""
    folder = out or Path("runs/gpu-proof")
    if warm_kernels is not None:
        from eco_fast.proof.warm_kernels import warm_kernels as fill

        archive = out or Path("kernels.tar.xz")
        made = fill(warm_kernels.replace(",", " ").split(), archive)
        print(f"{archive}: {made.kernels} kernels for Triton {made.triton}, {archive.stat().st_size / 1e6:.1f} MB")
    elif report:
        from eco_fast.proof.run import report_proof

        report_proof(folder, pack=pack)
    elif gpu_proof:
        from eco_fast.proof.run import gpu_proof as prove

        prove(folder, minutes=minutes, only=only, resume=resume, cpu=cpu, pack=pack, kernel_cache=kernel_cache)
    else:
        from eco_fast.commands.doctor import doctor as run

        run(as_json=as_json)


app.add_typer(bench, name="bench")


@_command(
    bench,
    "kernels",
    "Operations against what they replace.",
    "eco-fast bench kernels --csv kernels.csv --plot kernels.png",
    "eco-fast bench kernels --offline",
)
def bench_kernels(
    csv: _Csv = None,
    plot: _Plot = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Report on the code compiled for each architecture; needs no GPU.")
    ] = False,
    quick: _Quick = False,
) -> None:
    """Time the operations of eco_kernels against eager and compiled PyTorch and other ways to do the same."""
    if offline and plot is not None:
        raise UserError("--offline measures nothing that --plot could draw; leave one of them out")
    if offline:
        from eco_fast.bench import report_kernels

        report_kernels(csv)
    else:
        _bench("kernels", csv, plot, quick)


@_command(bench, "data", "Data path and preparation.", "eco-fast bench data --csv data.csv --plot data.png")
def bench_data(csv: _Csv = None, plot: _Plot = None, quick: _Quick = False) -> None:
    """Time every source of patches against a PyTorch DataLoader, and `prepare` against plain decoding."""
    _bench("data", csv, plot, quick)


@_command(bench, "step", "Training steps.", "eco-fast bench step --csv step.csv --plot step.png")
def bench_step(csv: _Csv = None, plot: _Plot = None, quick: _Quick = False) -> None:
    """Time training steps, with switch after switch turned on, mode against mode, and against plain PyTorch."""
    _bench("step", csv, plot, quick)


@_command(
    bench, "evaluate", "Metrics, evaluation, tiles.", "eco-fast bench evaluate --csv evaluate.csv --plot evaluate.png"
)
def bench_evaluate(csv: _Csv = None, plot: _Plot = None, quick: _Quick = False) -> None:
    """Time metrics against scikit-image, evaluation against inference, and tiles against whole images."""
    _bench("evaluate", csv, plot, quick)


def _bench(name: str, csv: Path | None, plot: Path | None, quick: bool) -> None:
    from eco_fast.bench import bench_suite

    state = bench_suite(name, csv, plot, quick=quick)
    if state != "ran":
        print(f"{name}: {state}")


@_command(bench, "all", "All of these, with plots.", "eco-fast bench all --out runs/bench")
def bench_all(
    out: Annotated[Path, _path("--out", "DIR", "Folder of rows and plots.")] = Path("runs/bench"),
    quick: _Quick = False,
) -> None:
    """Run all of these one after the other, with rows and plots in a folder; on 2 CPU cores half an hour."""
    from eco_fast.bench import bench_all as run

    run(out, quick=quick)
