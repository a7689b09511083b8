"""Commands that use a network: `eval`, `upscale` and `export`."""

from pathlib import Path
from typing import Annotated

import typer

from eco_fast.cli.options import (
    WEIGHTS,
    Device,
    Ensemble,
    FileScale,
    Network,
    Precision,
    Raw,
    Threads,
    Tile,
    choice,
    command,
    group,
    one_of,
    path,
    paths,
    published,
)

commands = group()


@command(
    commands,
    "eval",
    "Evaluate networks, with bicubic for comparison.",
    "eco-fast eval runs/eco --data Set5 --data Set14 --pictures pictures",
    "eco-fast eval runs/vanilla runs/eco runs/eco/checkpoints/best --data Set5",
    "eco-fast eval rlfn_s_x4.pth --network rlfn-s --scale 4 --data Set5",
    "eco-fast eval runs/edsr-x4 --data Set5 --ensemble --reference edsr-x4-eco",
)
def evaluate(
    weights: Annotated[
        list[Path], paths("WEIGHTS", "Runs, checkpoints or weights files; of a run the newest checkpoint.")
    ],
    data: Annotated[
        list[Path],
        path("--data", "DIR", "Folder of HR images, or one with HR/ and LR_bicubic/X2/, X3/, X4/; repeatable."),
    ],
    lr: Annotated[Path | None, path("--lr", "DIR", "Folder of LR images; by default the bicubic of HR.")] = None,
    network: Network = None,
    scale: FileScale = None,
    device: Device = "auto",
    threads: Threads = None,
    precision: Precision = "fp32",
    tile: Tile = None,
    raw: Raw = False,
    ensemble: Ensemble = False,
    reference: Annotated[
        str | None,
        choice(
            "--reference",
            "ROW",
            published,
            "Print the figures of a published network too, such as edsr-x4-eco.",
        ),
    ] = None,
    json: Annotated[Path | None, path("--json", "FILE", "Write the figures of every set as JSON.")] = None,
    csv: Annotated[Path | None, path("--csv", "FILE", "Write the figures of every image as CSV.")] = None,
    pictures: Annotated[
        Path | None, path("--pictures", "DIR", "Write bicubic, the networks' images and HR side by side.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse images that would be converted.")] = False,
    grey_values: Annotated[
        bool,
        typer.Option(
            "--grey-values",
            help="Compare grey files by their values, as tables of bicubic, SRCNN and VDSR do, and not as RGB.",
        ),
    ] = False,
) -> None:
    """Measure PSNR-Y in dB and SSIM-Y of networks, and those of bicubic enlargement, in a table for each scale."""
    from eco_fast.commands.evaluate import evaluate_networks as run

    run(
        weights,
        data,
        lr_dir=lr,
        network_name=network,
        scale=scale,
        device=device,
        threads=threads,
        precision=precision,
        tile=tile,
        raw=raw,
        ensemble=ensemble,
        reference=reference,
        json_file=json,
        csv_file=csv,
        pictures=pictures,
        strict=strict,
        grey_values=grey_values,
    )


@command(
    commands,
    "upscale",
    "Enlarge images.",
    "eco-fast upscale photos --weights runs/eco --out large",
    "eco-fast upscale a.png b.jpg --weights rlfn_s_x4.pth --network rlfn-s --scale 4 --out large --tile 256 --compare",
    "eco-fast upscale photos --weights runs/eco --out large --format jpg --skip-existing",
)
def upscale(
    images: Annotated[list[Path], paths("IMAGE", "Images, folders, or text files of paths.")],
    weights: Annotated[Path, path("--weights", "FILE", WEIGHTS)],
    out: Annotated[Path, path("--out", "DIR", "Folder that takes NAME_x2.png and so on, in subfolders as they were.")],
    network: Network = None,
    scale: FileScale = None,
    raw: Raw = False,
    device: Device = "auto",
    threads: Threads = None,
    precision: Precision = "fp32",
    tile: Tile = None,
    ensemble: Ensemble = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Write pictures of bicubic and the result side by side too.")
    ] = False,
    kind: Annotated[
        str,
        choice("--format", "FORMAT", one_of("png", "jpg", "webp", "tiff"), "What is written: png, jpg, webp or tiff."),
    ] = "png",
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there already.")] = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Leave out images whose file is there already.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first image that fails, instead of going on to the next.")
    ] = False,
) -> None:
    """Enlarge images with a network; what a file tells of its picture is kept.

    Exit code 1: some images failed, each named in a line, and all others were made. 2: bad input, or --strict.
    """
    from eco_fast.commands.upscale import upscale as run

    result = run(
        images,
        weights,
        out,
        network_name=network,
        scale=scale,
        raw=raw,
        device=device,
        threads=threads,
        precision=precision,
        tile=tile,
        ensemble=ensemble,
        compare=compare,
        kind=kind,
        force=force,
        skip_existing=skip_existing,
        strict=strict,
    )
    if result.failed:
        raise typer.Exit(1)


@command(
    commands,
    "export",
    "Write weights for others.",
    "eco-fast export runs/eco --format safetensors --out eco.safetensors",
    "eco-fast export runs/eco --format onnx --half --licence CC-BY-4.0",
)
def export(
    weights: Annotated[Path, paths("WEIGHTS", WEIGHTS)],
    kind: Annotated[
        str,
        choice(
            "--format",
            "FORMAT",
            one_of("safetensors", "basicsr", "onnx"),
            "safetensors, basicsr (a .pth file) or onnx.",
        ),
    ],
    out: Annotated[
        Path | None, path("--out", "FILE", "By default NETWORK-xSCALE with the ending of the format, here.")
    ] = None,
    raw: Raw = False,
    half: Annotated[
        bool,
        typer.Option(
            "--half",
            help="Weights in float16, half the size. ONNX computes in float16 too; its input and output stay float32.",
        ),
    ] = False,
    licence: Annotated[
        str | None,
        typer.Option("--licence", metavar="TEXT", help="Licence of the weights, such as CC-BY-4.0, for the file."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there already.")] = False,
) -> None:
    """Write the weights of a run in a format that other programs read."""
    from eco_fast.commands.export import export as run

    run(weights, kind, out, raw=raw, half=half, licence=licence, force=force)
