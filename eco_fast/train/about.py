"""What is trained, in a few lines before the first step."""

from collections.abc import Iterator

from torch import nn

from eco_fast.config import Config
from eco_fast.data.files import ImageFiles
from eco_fast.data.flat import TrainingSet
from eco_fast.data.memory import resident_bytes
from eco_fast.models import parameters_of
from eco_fast.train.inputs import Images, Inputs, store_of
from eco_fast.train.machine import describe, missing_tool
from eco_fast.train.world import World
from eco_fast.units import counted, size

_WIDTH = 80  # characters
_LABEL = 12


def about(inputs: Inputs, world: World) -> list[str]:
    """The lines, none longer than a terminal of 80 columns where no path is."""
    config = inputs.config
    data, run = config.data, config.run
    per_run = f"{counted(run.steps, 'step')} of {data.batch} patches, {data.patch} x {data.patch} LR pixels"
    rows = {
        "training": [*_student(config, inputs.student), f"mode {config.mode}"],
        "teacher": [inputs.about_teacher] if inputs.about_teacher else [],
        "images": [*_images(inputs.images), *(str(path) for path in data.train)],
        "store": _store(config, inputs.images),
        "validation": _validation(inputs),
        "steps": [per_run, f"{config.optim.name}, lr {config.optim.lr:g}", f"seed {run.seed}"],
        "computes": list(_computes(config, world)),
        "folder": [str(run.out)],
    }
    return [line for label, pieces in rows.items() if pieces for line in _wrapped(label, pieces)]


def _student(config: Config, network: nn.Module) -> Iterator[str]:
    student = config.student
    options = ", ".join(f"{name} {value}" for name, value in student.options.items())
    yield f"{student.name}{f' ({options})' if options else ''} x{config.scale}"
    yield f"{parameters_of(network, trained=True):,} parameters"
    if student.init is not None:
        yield f"begun with those of {student.init}"


def _images(images: Images) -> list[str]:
    pixels = int((images.heights * images.widths).sum()) * images.scale**2
    return [str(len(images.heights)), f"{pixels / 1e6:,.{1 if pixels >= 1e6 else 3}f} megapixels"]


def _store(config: Config, images: Images) -> list[str]:
    if isinstance(images, ImageFiles):
        return ["none: the files themselves are decoded while training"]
    hr = images.heights * images.scale, images.widths * images.scale
    taken = size(resident_bytes(*hr, images.scale, centroids=images.centroid is not None))
    place = f"resident on {config.run.device}" if isinstance(images, TrainingSet) else "mapped from disk"
    return [taken, place, str(store_of(config))]


def _validation(inputs: Inputs) -> list[str]:
    sets = [f"{each.name} ({len(each.pairs)} images, bicubic {each.bicubic:.3f} dB)" for each in inputs.valid]
    precision = ["validation in bf16"] if inputs.config.run.valid_precision == "bf16" else []
    every = f"every {counted(inputs.config.run.valid_every, 'step')}"
    return [*sets, every, *precision] if sets else ["none; --valid DIR shows what is learned"]


def _computes(config: Config, world: World) -> Iterator[str]:
    run = config.run
    where = describe(run, world)
    yield where["device"]
    yield run.precision
    missing = missing_tool() if run.compile == "off" and run.device == "cuda" else None
    yield f"compile {run.compile}" + (f" (it needs {missing})" if missing else "")
    if run.graphed:
        yield "CUDA graphs"
    yield counted(run.threads, "CPU thread")
    if world.size > 1:
        yield f"{world.size} processes on {counted(len(world.machines), 'machine')}"


def _wrapped(label: str, pieces: list[str]) -> Iterator[str]:
    """Pieces in lines, none of them cut."""
    line = label.ljust(_LABEL)
    for number, piece in enumerate(pieces, start=1):
        text = piece if number == len(pieces) else f"{piece}, "
        if len(line) > _LABEL and len(line) + len(text.rstrip()) > _WIDTH:
            yield line.rstrip()
            line = " " * _LABEL
        line += text
    yield line
