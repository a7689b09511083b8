"""The one typed configuration: a TOML recipe, `--set key=value` and the everyday flags become a frozen `Config`."""

import difflib
import json
import re
import tomllib
from collections.abc import Container, Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from pydantic import ValidationError as PydanticError

from eco_fast.errors import UserError
from eco_fast.faults import acceptable, key_of, meant, suggestion

Mode = Literal["vanilla", "kd", "eco-centroid", "eco", "alpha-sample"]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, str | Path) else value


Paths = Annotated[list[Path], BeforeValidator(_one_or_more, json_schema_input_type=str | list[str])]
"""Paths, or one of them."""


class Section(BaseModel):
    """A frozen table of the recipe that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class StudentConfig(Section):
    """The network that is trained."""

    name: str = "edsr-baseline"
    """The network."""
    options: dict[str, Any] = {}
    """Its options: blocks, channels, res_scale, ..."""
    init: Path | None = None
    """Weights to start from, of the same scale or of another."""


class TeacherConfig(Section):
    """The frozen network that makes the centroids; `vanilla` does not use it."""

    file: Path | None = None
    """Run, checkpoint or weights file."""
    name: str | None = None
    """Its network, for a bare weights file that is not recognised."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Its arithmetic; auto: that of stored centroids, else bf16 on GPUs where it is fast."""
    mode: Literal["auto", "cached", "online"] = "auto"
    """When it runs; auto: online where `files` decodes while training, else cached."""
    context: PositiveInt = 2
    """LR pixels around a patch that an online teacher sees."""
    rounding: Literal["8bit", "none"] = "8bit"
    """Rounding of an online teacher's centroids; stored ones are 8 bit."""


class DataConfig(Section):
    """Training and validation images."""

    train: Paths = []
    """Folders of HR images, text files of their paths, or one prepared store."""
    train_lr: Path | None = None
    """LR images of one's own; without it LR is the exact 8-bit bicubic of HR."""
    valid: Paths = []
    """Sets of HR images, each with a curve of its own; the first one chooses the best checkpoint."""
    valid_lr: Paths = []
    """Their LR images, a folder for each set; without it the bicubic of HR."""
    patch: PositiveInt = 48
    """Side of a patch in LR pixels."""
    batch: PositiveInt = 16
    """Patches per step, of all processes together."""
    patches_per_image: NonNegativeInt = 0
    """Patches cut close together from an image; 0: 16 for `files`, else 1."""
    source: Literal["auto", "resident", "mapped", "files"] = "auto"
    """How patches are read."""
    store: Path | None = None
    """Where the prepared store of these images is kept; without it in the user's cache."""
    strict: bool = False
    """Whether a converted or left-out image is an error."""


class AlphaConfig(Section):
    """The weight of the real pair over training."""

    schedule: Literal["official", "linear", "cosine", "constant"] = "official"
    """How alpha rises."""
    shift: float = 0.0
    """Shift of the official sigmoid: larger is later."""
    end: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Fraction of training at which `linear` and `cosine` reach 1."""
    value: Fraction = 0.5
    """Alpha of `constant`."""


class LossConfig(Section):
    """The pixel loss."""

    kind: Literal["l1", "l2", "charbonnier"] = "l1"
    """Its form."""
    scale: PositiveFloat = 255.0
    """Factor of the difference of images in [0, 1]."""


class OptimConfig(Section):
    """Optimiser, learning rate, gradient clip, EMA."""

    name: str = "adam"
    """The optimiser: adam, adamw, lamb, or any of torch.optim."""
    options: dict[str, Any] = {}
    """Its options besides those below: momentum of sgd, say."""
    lr: PositiveFloat = 1e-3
    """Highest learning rate."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.99)
    """Decays of the moments of optimisers that have them."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator, likewise."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay, likewise."""
    schedule: Literal["cosine", "multistep", "constant"] = "cosine"
    """Of the learning rate after the warm-up; cosine ends at 0."""
    milestones: list[NonNegativeInt] = []
    """Steps of `multistep` at which the rate is multiplied by gamma."""
    gamma: PositiveFloat = 0.5
    """Factor of `multistep`."""
    warmup: NonNegativeInt = 0
    """Steps of linear rise."""
    accumulate: PositiveInt = 1
    """Parts that a batch is computed in, to save memory."""
    clip_value: NonNegativeFloat = 0.0
    """Clip of every gradient value; 0: none."""
    clip_norm: NonNegativeFloat = 0.0
    """Clip of the norm of all gradients; 0: none."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the average of the weights; 0: none is kept."""


class GuardConfig(Section):
    """Updates that do not count: a jump of the loss, or a loss or gradient that is not finite."""

    skip_factor: NonNegativeFloat = 5.0
    """Times the last accepted loss: what is above is skipped; 0: only what is not finite."""
    first_loss: NonNegativeFloat = 0.0
    """Taken as the last accepted loss before the first update; 0: none."""
    limit: PositiveInt = 100
    """Skipped updates in a row that end the run."""


class RunConfig(Section):
    """Where a run is kept, how long and how precisely it trains, and how often it logs, validates and saves."""

    out: Path = Path("runs/run")
    """Folder of the run."""
    steps: PositiveInt = 125_000
    """Updates of the weights."""
    seed: NonNegativeInt = 0
    """Seed of weights, order of images, patches, orientations."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto: CUDA where PyTorch sees it."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """Arithmetic of the network; auto: bf16 where it is faster, else fp32."""
    valid_precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of validation; auto: bf16 on GPUs that train in bf16 or fp16."""
    compile: Literal["auto", "off", "default", "max-autotune"] = "auto"
    """How torch.compile is used; auto: on for CUDA, off on CPUs."""
    lanes: bool = True
    """Whether batches are made one step ahead, on a stream of their own."""
    graph: Literal["auto"] | bool = "auto"
    """Whether batch and update are replayed as CUDA graphs; auto: on a GPU."""
    threads: NonNegativeInt = 0
    """CPU threads; 0: PyTorch's choice."""
    log_every: PositiveInt = 100
    """Steps between lines of the log."""
    valid_every: PositiveInt = 5_000
    """Steps between validations; at most a tenth of the steps where those are set on the command line."""
    checkpoint_every: PositiveInt = 5_000
    """Steps between checkpoints."""
    keep_last: PositiveInt = 3
    """Checkpoints that are kept, besides the best by validation."""
    tensorboard: bool = False
    """Whether TensorBoard's event files are written too."""

    @property
    def graphed(self) -> bool:
        """Whether CUDA graphs are used, once that is resolved."""
        return self.graph is True


class Config(Section):
    """Everything a training run depends on."""

    mode: Mode = "eco"
    """What input and target hold."""
    scale: Literal[2, 3, 4] = 2
    """Enlargement."""
    student: StudentConfig = StudentConfig()
    teacher: TeacherConfig = TeacherConfig()
    data: DataConfig = DataConfig()
    alpha: AlphaConfig = AlphaConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    guard: GuardConfig = GuardConfig()
    run: RunConfig = RunConfig()


OPTIONS = {
    "mode": "--mode",
    "scale": "--scale",
    "student.init": "--init",
    "teacher.file": "--teacher",
    "data.train": "--train",
    "data.train_lr": "--train-lr",
    "data.valid": "--valid",
    "data.strict": "--strict",
    "run.steps": "--steps",
    "run.out": "--out",
    "run.device": "--device",
    "run.threads": "--threads",
    "run.lanes": "--lanes",
}
"""Keys with a flag of their own, and that flag."""

FREE_ON_RESUME = frozenset(
    f"run.{name}"
    for name in ("out", "device", "log_every", "valid_every", "checkpoint_every", "keep_last", "tensorboard")
)
"""What may change between the parts of a resumed run without changing its numbers."""

FREE_BY_MACHINE = frozenset(
    {"run.out", "student.init", "teacher.file"}
    | {f"data.{name}" for name in ("train", "train_lr", "valid", "valid_lr", "store")}
)
"""What may differ between the machines of a run: paths. What lies there is compared."""

_WITH_SCALE = re.compile(r"(edsr|rcan|edsr-baseline)-x([234])")  # names of recipes before `--scale` chose the scale


def load_config(
    recipe: str | Path,
    settings: Iterable[str] = (),
    flags: Mapping[str, Any] | None = None,
    *,
    first: Config | None = None,
) -> Config:
    """Read a recipe and lay `--set` settings, then everyday flags, over it.

    Where one of these sets `run.steps` and none `run.valid_every`, a run is validated ten times at least.

    Args:
        recipe: Path of a TOML file, or the name of a recipe inside the package.
        settings: `section.key=value`, the value in TOML's notation; a bare word is a string.
        flags: Dotted keys to values; None values are left out.
        first: What the first process of a run uses. It stands in for the recipe, which is not read.

    Raises:
        UserError: The recipe is missing or broken, a key is unknown (the nearest valid one is named), a value is wrong:
            one line that names what was typed, or the recipe where it comes from there.
    """
    source, document = _read_recipe(recipe) if first is None else ("the command", _document(first))
    typed: dict[str, str] = {}  # by key, as on a command line; the last one of a key is the one that counts
    for setting in settings:
        key, equals, value = (part.strip() for part in setting.partition("="))
        if not equals:
            raise UserError(f"--set {setting} has no value; write --set {setting}=VALUE")
        if not _may_be_set(key):
            raise UserError(f"--set {setting}: there is no key {key}; {suggestion(key, _valid_keys())}")
        _put(document, key, _toml_value(value))
        typed[key] = f"--set {setting}"
    for key, value in (flags or {}).items():
        if value is not None:
            _put(document, key, value)
            values = " ".join(map(str, value)) if isinstance(value, list) else value
            typed[key] = f"{OPTIONS[key]} {values}" if key in OPTIONS else f"{key}={values}"
    config = parse_config(document, source, typed)
    if "run.steps" in typed and "run.valid_every" not in typed:
        every = min(config.run.valid_every, max(1, config.run.steps // 10))
        config = config.model_copy(update={"run": config.run.model_copy(update={"valid_every": every})})
    return config


def parse_config(document: Mapping[str, Any], source: str, typed: Mapping[str, str] | None = None) -> Config:
    """Validate a nested dictionary.

    Args:
        document: Tables and values.
        source: Where it comes from.
        typed: By key what came from elsewhere, as it was typed there.

    Raises:
        UserError: One line with the first fault, and the nearest valid key where a key is unknown.
    """
    try:
        return Config.model_validate(document)
    except PydanticError as error:
        faults = error.errors()
    keys, fault = _valid_keys(), faults[0]
    key = key_of(fault, keys)
    names = [name for name in typed or {} if f"{name}.".startswith(f"{key}.") or f"{key}.".startswith(f"{name}.")]
    where = typed[names[-1]] if typed and names else f"{key} = {json.dumps(fault['input'], default=str)} in {source}"
    if fault["type"] == "extra_forbidden":
        raise UserError(f"{where}: there is no key {key}; {suggestion(key, keys)}")
    ways = dict.fromkeys(acceptable(each) for each in faults if key_of(each, keys) == key)
    raise UserError(f"{where}: take {' or '.join(ways)}{meant(fault)}")


def recipe_names() -> list[str]:
    """Names of the recipes inside the package."""
    folder = resources.files("eco_fast") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def find_recipe(recipe: str | Path) -> tuple[Path, str]:
    """Where a recipe lies, a file, that of a run's folder or one inside the package, and its text.

    Raises:
        UserError: It is missing or cannot be read.
    """
    path = Path(recipe)
    if (path / "config.toml").is_file():  # a run
        path /= "config.toml"
    if path.is_file():
        try:
            return path, path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read recipe {path}: {error}; name a TOML text file") from None
    inside = resources.files("eco_fast") / "recipes" / f"{recipe}.toml"
    if str(recipe) in recipe_names():
        return Path(str(inside)), inside.read_text(encoding="utf-8")
    if renamed := _WITH_SCALE.fullmatch(str(recipe)):
        raise UserError(f"recipe {recipe} is now written eco-{renamed[1]} --scale {renamed[2]}")
    near = difflib.get_close_matches(str(recipe), recipe_names(), n=1)
    meant = f"did you mean {near[0]}?" if near else f"name a TOML file, a run, or one of: {', '.join(recipe_names())}"
    raise UserError(f"recipe {recipe} not found; {meant}")


def config_toml(config: Config) -> str:
    """The resolved configuration as TOML that `load_config` reads back to the same values."""
    import tomli_w

    return tomli_w.dumps(_document(config))


def differing_keys(ours: Config, theirs: Config, free: Container[str] = FREE_ON_RESUME) -> list[str]:
    """Dotted keys, with both values, in which two configurations differ and that are not free to."""
    left, right = dict(_leaves(ours.model_dump(mode="json"))), dict(_leaves(theirs.model_dump(mode="json")))
    return [
        f"{key} ({left.get(key)} here, {right.get(key)} there)"
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key) and key not in free
    ]


def _document(config: Config) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude_none=True)


def _read_recipe(recipe: str | Path) -> tuple[str, dict[str, Any]]:
    """Where a recipe lies, and what it holds."""
    path, text = find_recipe(recipe)
    try:
        return str(path), tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not valid TOML: {error}; fix that line") from None


def _put(document: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        document = document.setdefault(section, {})
        if not isinstance(document, dict):
            raise UserError(f"{section} is no table in this recipe; write [{section}] there, and its keys below")
    document[last] = value


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _valid_keys(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys += _valid_keys(inner, f"{prefix}{name}.")
        else:
            keys.append(f"{prefix}{name}")
    return keys


def _may_be_set(key: str) -> bool:
    """Whether there is a key or a section of this name, or a table of options that has such a key."""
    return any(
        f"{valid}.".startswith(f"{key}.") or (valid.endswith(".options") and key.startswith(f"{valid}."))
        for valid in _valid_keys()
    )
