"""Weights in and out of files: `.safetensors` written here, and the `.pth`/`.pt` files that others publish.

Files written here name their network in the header. Bare files are recognised by the names and shapes they hold.
"""

import json
import pickle
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from eco_fast.errors import UserError
from eco_fast.files import write_atomically
from eco_fast.models import SCALES, build, names

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]

_WRAPPERS = ("params_ema", "params", "state_dict")  # where BasicSR and its kin, and Lightning, keep the weights
_PREFIXES = ("module.", "_orig_mod.")  # left by DataParallel and torch.compile
_STEP_FOLDER = re.compile(r"step-(\d+)")


def identity(network_name: str, options: Mapping[str, Any], scale: int) -> dict[str, str]:
    """The header of a weights file: what `load_network` needs to build its network again."""
    return {"model": network_name, "scale": str(scale), "options": json.dumps(dict(options), sort_keys=True)}


def save_weights(path: Path | str, state_dict: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a `.safetensors` file in one piece: a killed process leaves the old file or the new one, never half.

    Raises ValueError where `path` has another extension and OSError where it cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"weights are written as .safetensors, not as {path.name}")
    tensors = {key: value.detach().cpu().contiguous() for key, value in state_dict.items()}
    write_atomically(path, safetensors.torch.save(tensors, metadata=dict(metadata)))


def read_weights(path: Path | str) -> tuple[State, dict[str, str]]:
    """State dict (CPU tensors) and header of a `.safetensors`, `.pth` or `.pt` file; the header of others is empty.

    `params_ema`, `params` and `state_dict` are unwrapped, in this order of preference, and `module.` is taken off the
    names. Pickles are read with `weights_only=True`. Raises UserError for a file that is missing or holds no weights,
    and for a pickle that holds anything but plain data.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no weights file {path}; check the path")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in (".pth", ".pt"):
        return _unwrap(_read_pickle(path), path), {}
    raise UserError(f"{path} is not a weights file; give a .safetensors, .pth or .pt file")


def load_into(network: nn.Module, path: Path | str) -> None:
    """Load the weights at `path` (file, checkpoint or run folder) into `network`.

    Names and shapes are compared before anything is copied. Raises UserError where they differ: it tells which network
    and scale the file is for where it can.
    """
    path = weights_file(Path(path))
    state, metadata = read_weights(path)
    _load_state(network, state, metadata, path)


def load_network(path: Path | str, name: str | None = None, scale: int | None = None) -> nn.Module:
    """The network at `path`, in eval mode, float32 on the CPU, with gradients off.

    `path` is a file, a checkpoint folder (its EMA weights if it has them) or a run folder (its newest checkpoint).
    Files written here tell `name` and `scale`; of bare files they are recognised by shape where left out. Draws
    nothing from torch's generator. Raises UserError as `read_weights` and `load_into` do, and where `name` or `scale`
    contradicts the file.
    """
    path = weights_file(Path(path))
    state, metadata = read_weights(path)
    options: dict[str, Any] = {}
    found = _named_in(metadata, path)
    if found is not None:
        found_name, found_scale, options = found
    else:
        found_name, found_scale = _choose(_shapes_of(state), name, scale, path)
    if name not in (None, found_name) or scale not in (None, found_scale):
        asked = f"{name or found_name} x{scale or found_scale}"
        raise UserError(f"{path} holds {found_name} x{found_scale}, not {asked}; leave the model and scale out")
    with torch.device("meta"):
        network = build(found_name, found_scale, **options)
    network.to_empty(device="cpu")
    _load_state(network, state, metadata, path)
    return network.eval().requires_grad_(False)


def weights_file(path: Path) -> Path:
    """The file that a run folder, a checkpoint folder or a file stands for."""
    if not path.is_dir():
        return path
    checkpoints = path / "checkpoints"
    if not checkpoints.is_dir():
        file = _in_checkpoint(path)
        if file is None:
            raise UserError(f"{path} holds no weights; give a run folder, a checkpoint folder or a weights file")
        return file
    # Folders still being written start with "." or end in ".tmp", so the pattern passes over them.
    steps = [(int(m[1]), p) for p in checkpoints.iterdir() if (m := _STEP_FOLDER.fullmatch(p.name))]
    for _, folder in sorted(steps, reverse=True):
        if file := _in_checkpoint(folder):
            return file
    raise UserError(f"{path} has no finished checkpoint yet; train longer or give a weights file")


def _in_checkpoint(folder: Path) -> Path | None:
    candidates = (folder / "ema.safetensors", folder / "weights.safetensors")
    return next((file for file in candidates if file.is_file()), None)


def _read_safetensors(path: Path) -> tuple[State, dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable .safetensors file ({error}); copy or download it again") from error
    return _unwrap(state, path), metadata


def _read_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if culprit := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{path} holds {culprit[1]} beside its weights and is refused, since loading it could run code; "
                "ask for a .safetensors file or for the bare state dict"
            ) from error
        raise UserError(f"{path} is not a weights file; copy or download it again") from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is damaged or not a weights file; copy or download it again") from error


def _unwrap(content: Any, path: Path) -> State:
    while isinstance(content, Mapping) and (wrapper := next((w for w in _WRAPPERS if w in content), None)):
        content = content[wrapper]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"{path} holds no state dict; give a file of weights (params_ema, params or bare)")
    state = dict(content)
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _named_in(metadata: Mapping[str, str], path: Path) -> tuple[str, int, dict[str, Any]] | None:
    """Name, scale and options in a header; None if it names no network."""
    if "model" not in metadata:
        return None
    try:
        return metadata["model"], int(metadata["scale"]), dict(json.loads(metadata.get("options", "{}")))
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} has a damaged header ({error!r}); export the weights again") from error


def _choose(shapes: Shapes, name: str | None, scale: int | None, path: Path) -> tuple[str, int]:
    """Name and scale of a bare file: as given, the rest recognised."""
    if name is not None and scale is not None:
        return name, scale
    fits = _recognise(shapes)
    if len(fits) == 1:
        return fits[0]
    if name is None:
        raise UserError(f"{path} fits none of {', '.join(names())}; give --model and --scale to see where it differs")
    if name not in names():
        raise UserError(f"unknown network {name!r}; there are {', '.join(names())}")
    raise UserError(f"{path} does not fit {name} at any scale; give the model it was trained with")


@lru_cache
def _registered_shapes(name: str, scale: int) -> Shapes:
    with torch.device("meta"):
        return _shapes_of(build(name, scale).state_dict())


def _recognise(shapes: Shapes) -> list[tuple[str, int]]:
    """Registered networks whose parameters have exactly these names and shapes."""
    return [(name, scale) for name in names() for scale in SCALES if _registered_shapes(name, scale) == shapes]


def _shapes_of(state: Mapping[str, Tensor]) -> Shapes:
    return {key: tuple(value.shape) for key, value in state.items()}


def _load_state(network: nn.Module, state: State, metadata: Mapping[str, str], path: Path) -> None:
    wanted, given = _shapes_of(network.state_dict()), _shapes_of(state)
    if wanted != given:
        raise UserError(_explain(wanted, given, metadata, path))
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{path} does not load: {str(error).splitlines()[-1].strip()}") from error


def _explain(wanted: Shapes, given: Shapes, metadata: Mapping[str, str], path: Path) -> str:
    """One line on why weights of shapes `given` do not fit a network of shapes `wanted`."""
    here = "".join(f", not {name} x{scale}" for name, scale in _recognise(wanted))
    named = _named_in(metadata, path)
    fits = [named[:2]] if named else _recognise(given)
    if len(fits) == 1:
        name, scale = fits[0]
        return f"{path} holds {name} x{scale} weights{here}; choose the file or the model and scale to match"
    if not wanted.keys() & given.keys():
        return f"{path} holds another network (it has {next(iter(given))!r}, unknown here); choose its model"
    for key in (*wanted, *given):
        if wanted.get(key) != given.get(key):
            break
    found, expected = given.get(key, "nothing"), wanted.get(key, "nothing")
    return f"{path} does not fit: {key} is {found} where the network{here} has {expected}; choose its model and scale"
