"""The one typed configuration: a TOML recipe, `--set key=value` and the everyday flags become a frozen `Config`."""

import difflib
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

Mode = Literal["vanilla", "kd", "eco-centroid", "eco", "alpha-sample"]
Fraction = Annotated[float, Field(ge=0, le=1)]
Paths = Annotated[list[Path], BeforeValidator(lambda given: [given] if isinstance(given, str | Path) else given)]
"""Several paths, or one that needs no list around it."""


class Section(BaseModel):
    """A frozen table of the recipe that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StudentConfig(Section):
    """The network that is trained."""

    name: str = "edsr-baseline"
    options: dict[str, Any] = {}  # of the network: blocks, channels, res_scale, ...
    init: Path | None = None  # weights to start from, of the same scale or of another


class TeacherConfig(Section):
    """The frozen network that makes the centroids; `vanilla` does not use it."""

    file: Path | None = None
    name: str | None = None  # of the network, for a bare weights file
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: that of stored ones, else bf16 on GPUs where it is fast
    mode: Literal["auto", "cached", "online"] = "auto"  # auto: online where `files` decodes while training, else cached
    context: PositiveInt = 2  # LR pixels around a patch that an online teacher sees
    rounding: Literal["8bit", "none"] = "8bit"  # of an online teacher's centroids; stored ones are 8 bit


class DataConfig(Section):
    """Training and validation images."""

    train: list[Path] = []  # folders of HR images, or text files of paths
    train_lr: Path | None = None  # the user's own LR images; without it LR is the exact 8-bit bicubic of HR
    valid: Paths = []  # sets of HR images, each with a curve of its own; the first one chooses the best checkpoint
    valid_lr: Paths = []  # their own LR images, a folder for each set
    patch: PositiveInt = 48  # LR pixels
    batch: PositiveInt = 16
    patches_per_image: NonNegativeInt = 0  # patches cut close together from an image; 0: 16 for `files`, else 1
    source: Literal["auto", "resident", "mapped", "files"] = "auto"
    store: Path | None = None  # where the prepared store of these images is kept; without it in the user's cache
    strict: bool = False  # a converted or left-out image is an error


class AlphaConfig(Section):
    """The weight of the real pair over training."""

    schedule: Literal["official", "linear", "cosine", "constant"] = "official"
    shift: float = 0.0  # of the official sigmoid: larger is later
    end: Annotated[float, Field(gt=0, le=1)] = 1.0  # fraction of training at which `linear` and `cosine` reach 1
    value: Fraction = 0.5  # of `constant`


class LossConfig(Section):
    """The pixel loss."""

    kind: Literal["l1", "l2", "charbonnier"] = "l1"
    scale: PositiveFloat = 255.0  # images in [0, 1] times this


class OptimConfig(Section):
    """Optimiser, learning rate, gradient clip, EMA."""

    name: str = "adam"  # adam, adamw, lamb, or any optimiser of torch.optim
    options: dict[str, Any] = {}  # of the optimiser, besides those below: momentum of sgd, say
    lr: PositiveFloat = 1e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.99)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    schedule: Literal["cosine", "multistep", "constant"] = "cosine"
    milestones: list[NonNegativeInt] = []  # of `multistep`: steps at which the rate is multiplied by gamma
    gamma: PositiveFloat = 0.5
    warmup: NonNegativeInt = 0  # steps of linear rise
    accumulate: PositiveInt = 1  # parts that a batch is computed in, to save memory
    clip_value: NonNegativeFloat = 0.0  # 0: no clip by value
    clip_norm: NonNegativeFloat = 0.0  # 0: no clip by norm
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999  # 0: no average is kept


class GuardConfig(Section):
    """Updates that do not count: a jump of the loss, or a loss or gradient that is not finite."""

    skip_factor: NonNegativeFloat = 5.0  # times the last accepted loss; 0: only what is not finite
    first_loss: NonNegativeFloat = 0.0  # taken as the last accepted loss before the first update; 0: none
    limit: PositiveInt = 100  # skipped updates in a row that end the run


class RunConfig(Section):
    """Where a run is kept, how long and how precisely it trains, and how often it logs, validates and saves."""

    out: Path = Path("runs/run")
    steps: PositiveInt = 125_000
    seed: NonNegativeInt = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    valid_precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on GPUs that train in bf16 or fp16
    compile: Literal["auto", "off", "default", "max-autotune"] = "auto"
    lanes: bool = True  # make batches one step ahead, on a stream of their own
    graph: Literal["auto"] | bool = "auto"  # replay batch and update as CUDA graphs; auto: on a GPU
    threads: NonNegativeInt = 0  # CPU threads; 0: PyTorch's choice
    log_every: PositiveInt = 100
    valid_every: PositiveInt = 5_000
    checkpoint_every: PositiveInt = 5_000
    keep_last: PositiveInt = 3  # checkpoints, besides the best by validation
    tensorboard: bool = False  # write its event files too

    @property
    def graphed(self) -> bool:
        """Whether CUDA graphs are used, once that is resolved."""
        return self.graph is True


class Config(Section):
    """Everything a training run depends on."""

    mode: Mode = "eco"
    scale: Literal[2, 3, 4] = 2
    student: StudentConfig = StudentConfig()
    teacher: TeacherConfig = TeacherConfig()
    data: DataConfig = DataConfig()
    alpha: AlphaConfig = AlphaConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    guard: GuardConfig = GuardConfig()
    run: RunConfig = RunConfig()


FREE_ON_RESUME = frozenset({"run.out", "run.device", "run.keep_last", "run.checkpoint_every", "run.tensorboard"})
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

    Args:
        recipe: Path of a TOML file, or the name of a recipe inside the package.
        settings: `section.key=value`, the value in TOML's notation; a bare word is a string.
        flags: Dotted keys to values; None values are left out.
        first: What the first process of a run uses. It stands in for the recipe, which is not read.

    Raises:
        UserError: The recipe is missing or broken, a key is unknown (the nearest valid one is named), a value is wrong.
    """
    source, document = _read_recipe(recipe) if first is None else ("the command", _document(first))
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting} has no value; write --set {setting}=VALUE")
        _put(document, key.strip(), _toml_value(value.strip()))
    for key, value in (flags or {}).items():
        if value is not None:
            _put(document, key, value)
    return parse_config(document, source)


def parse_config(document: Mapping[str, Any], source: str) -> Config:
    """Validate a nested dictionary.

    Raises:
        UserError: One line with the first fault, and the nearest valid key where a key is unknown.
    """
    try:
        return Config.model_validate(document)
    except PydanticError as error:
        fault = error.errors()[0]
    parts = [str(part) for part in fault["loc"]]
    key = ".".join(parts)
    if fault["type"] == "extra_forbidden":
        raise UserError(f"unknown key {key} in {source}; {_suggestion(key)}")
    raise UserError(f"wrong value for {key} in {source}: {fault['msg']} (got {fault['input']!r}); fix that value")


def recipe_names() -> list[str]:
    """Names of the recipes inside the package."""
    folder = resources.files("eco_fast") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


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
    path, text = _find_recipe(recipe)
    try:
        return str(path), tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not valid TOML: {error}; fix that line") from None


def _find_recipe(recipe: str | Path) -> tuple[Path, str]:
    path = Path(recipe)
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
    raise UserError(f"recipe {recipe} not found; name a TOML file or one of: {', '.join(recipe_names())}")


def _put(document: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        document = document.setdefault(section, {})
        if not isinstance(document, dict):
            raise UserError(f"unknown key {key}; {_suggestion(key)}")
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


def _suggestion(key: str) -> str:
    valid = _valid_keys()
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    if not near:  # a key without its section, or in a wrong one
        last = difflib.get_close_matches(key.rpartition(".")[2], [name.rpartition(".")[2] for name in valid], n=1)
        near = [name for name in valid if last and name.rpartition(".")[2] == last[0]]
    return f"did you mean {near[0]}?" if near else f"valid keys: {', '.join(valid)}"
