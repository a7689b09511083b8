"""Commands that look at this machine and measure on it: `doctor` and `bench`."""

from pathlib import Path
from typing import Annotated

import typer

from eco_fast.cli.options import checks, choice, command, group, one_of, path
from eco_fast.errors import UserError

commands = group()
bench = group(help="Measure how fast things are, against what they replace. Needs the source tree.")

_Csv = Annotated[Path | None, path("--csv", "FILE", "Write the rows to this file as CSV.")]
_Plot = Annotated[Path | None, path("--plot", "PNG", "Draw the rows as PNG; of kernels a roofline too.")]
_Quick = Annotated[bool, typer.Option("--quick", help="Tiny problems: shows that everything runs, not how fast.")]


@command(
    commands,
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
        path("--out", "PATH", "Folder of the proof, by default runs/gpu-proof; with --warm-kernels the archive."),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", metavar="N", help="End the proof after these, with its report.")
    ] = None,
    only: Annotated[str, choice("--only", "A,B", checks, "Make only these checks.")] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the proof that is in --out.")] = False,
    cpu: Annotated[bool, typer.Option("--cpu", help="Make the checks of the CPU too where there is a GPU.")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Only write the report of what is in --out, say after a power cut.")
    ] = False,
    pack: Annotated[Path | None, path("--pack", "FILE", "Write everything into one archive (tar.xz).")] = None,
    kernel_cache: Annotated[
        Path | None,
        path("--kernel-cache", "FILE", "Archive of compiled kernels, made by --warm-kernels, to begin with."),
    ] = None,
    warm_kernels: Annotated[
        str | None,
        choice(
            "--warm-kernels",
            "SM",
            one_of("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"),
            "Compile all kernels for these architectures, such as sm_80,sm_90, into an archive; needs no GPU.",
        ),
    ] = None,
) -> None:
    """Say what is installed, what is used for what and why, and what to install."""
    if warm_kernels is not None:
        _warm_kernels(warm_kernels.replace(",", " ").split(), out or Path("kernels.tar.xz"))
    elif report or gpu_proof:
        from eco_fast.proof import run

        folder = out or Path("runs/gpu-proof")
        if report:
            run.report_proof(folder, pack=pack)
        else:
            run.gpu_proof(
                folder, minutes=minutes, only=only, resume=resume, cpu=cpu, pack=pack, kernel_cache=kernel_cache
            )
    else:
        from eco_fast.commands.doctor import doctor as say

        say(as_json=as_json)


def _warm_kernels(architectures: list[str], archive: Path) -> None:
    from eco_fast.proof.warm_kernels import warm_kernels as run

    made = run(architectures, archive)
    print(f"{archive}: {made.kernels} kernels for Triton {made.triton}, {archive.stat().st_size / 1e6:.1f} MB")


@command(
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
        from eco_fast.commands.bench import suites

        suites().report_kernels(csv)
    else:
        _bench("kernels", csv, plot, quick)


@command(bench, "data", "Data path and preparation.", "eco-fast bench data --csv data.csv --plot data.png")
def bench_data(csv: _Csv = None, plot: _Plot = None, quick: _Quick = False) -> None:
    """Time every source of patches against a PyTorch DataLoader, and `prepare` against plain decoding."""
    _bench("data", csv, plot, quick)


@command(bench, "step", "Training steps.", "eco-fast bench step --csv step.csv --plot step.png")
def bench_step(csv: _Csv = None, plot: _Plot = None, quick: _Quick = False) -> None:
    """Time training steps, with switch after switch turned on, mode against mode, and against plain PyTorch."""
    _bench("step", csv, plot, quick)


@command(
    bench, "evaluate", "Metrics, evaluation, tiles.", "eco-fast bench evaluate --csv evaluate.csv --plot evaluate.png"
)
def bench_evaluate(csv: _Csv = None, plot: _Plot = None, quick: _Quick = False) -> None:
    """Time metrics against scikit-image, evaluation against inference, and tiles against whole images."""
    _bench("evaluate", csv, plot, quick)


def _bench(name: str, csv: Path | None, plot: Path | None, quick: bool) -> None:
    from eco_fast.commands.bench import suites

    state = suites().bench_suite(name, csv, plot, quick=quick)
    if state != "ran":
        print(f"{name}: {state}")


@command(bench, "all", "All of these, with plots.", "eco-fast bench all --out runs/bench")
def bench_all(
    out: Annotated[Path, path("--out", "DIR", "Folder of rows and plots.")] = Path("runs/bench"),
    quick: _Quick = False,
) -> None:
    """Run all of these one after the other, with rows and plots in a folder; on 2 CPU cores half an hour."""
    from eco_fast.commands.bench import suites

    suites().bench_all(out, quick=quick)
