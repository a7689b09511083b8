"""Weights in and out of files: `.safetensors` written here, and the `.pth`/`.pt` files that others publish.

Files written here name their network in the header. Bare files are recognised by the names and shapes they hold.
"""

import json
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

import eco_fast
from eco_fast.errors import UserError
from eco_fast.files import write_atomically
from eco_fast.models import SCALES, build, names, spandrel_networks
from eco_fast.models.layers import mean_shift_state
from eco_fast.models.recognise import Shapes, explain, named_in, recognise, shapes_of

State = dict[str, Tensor]

# Where BasicSR and its kin, Lightning and others keep the weights.
_WRAPPERS = ("state_dict", "params_ema", "params-ema", "params", "model_state_dict", "model", "net")
HEADER = "metadata"
"""The key of a pickle that holds the header; readers of weights pass over it."""
_PREFIXES = ("module.", "_orig_mod.", "netG.")  # left by DataParallel, by torch.compile, by trainers of GANs
_UPSAMPLER = re.compile(r"(tail|up|upsample|upsampler|upscale|to_img|conv_up\d*)\.")  # as networks call it
_NAMED_AT_MOST = 6
_LARGEST_EMPTY_SIDE = 2**16  # a tensor of 0 x 10^12 takes no room in a file, but what is built to fit it may
_WRAPPINGS_AT_MOST = 4  # a pickle can hold a dictionary that holds itself
_WRITER = "eco-fast"  # the key of a header that says so
_STEP_FOLDER = re.compile(r"step-(\d+)")


def identity(
    network_name: str, options: Mapping[str, Any], scale: int, *, mode: str | None = None, teacher: Path | None = None
) -> dict[str, str]:
    """The header of a weights file: what `load_network` needs to build its network again, and how it was trained.

    Of the teacher's path the name alone: weights are given away.
    """
    trained = {"mode": mode, "teacher": None if teacher is None or mode == "vanilla" else teacher.name}
    return {
        "model": network_name,
        "scale": str(scale),
        "options": json.dumps(dict(options), sort_keys=True),
        **{key: value for key, value in trained.items() if value is not None},
        **versions(),
    }


def versions() -> dict[str, str]:
    """What writes a file, for its header."""
    return {_WRITER: eco_fast.__version__, "torch": str(torch.__version__)}


def save_weights(path: Path | str, state_dict: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a `.safetensors` file in one piece: a killed process leaves the old file or the new one, never half.

    Equal weights and metadata give equal bytes, so that checksums can compare runs.

    Raises ValueError where `path` has another extension and OSError where it cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"weights are written as .safetensors, not as {path.name}")
    tensors = {key: value.detach().cpu().contiguous() for key, value in state_dict.items()}
    write_atomically(path, _with_sorted_metadata(safetensors.torch.save(tensors, metadata=dict(metadata))))


def _with_sorted_metadata(content: bytes) -> bytes:
    """The same safetensors file with its metadata in alphabetical order: the library writes them in a random one.

    A file is the length of its header (8 bytes, little-endian), the header in JSON, padded by spaces to a multiple of
    8 bytes, and the tensors.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, memoryview(content)[end:]))


def read_weights(path: Path | str) -> tuple[State, dict[str, str]]:
    """State dict (CPU tensors) and header of a `.safetensors`, `.pth` or `.pt` file.

    The header is that of `identity`; it is empty, or says something else, in the files of others.

    `state_dict`, `params_ema`, `params` and what else trainers wrap weights in are unwrapped, in this order of
    preference, and `module.` and its like are taken off the names. Pickles are read with `weights_only=True`. Raises
    UserError for a file that is missing or holds no weights, and for a pickle that holds anything but plain data.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no weights file {path}; name a run, a checkpoint or a weights file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in (".pth", ".pt"):
        content = _read_pickle(path)
        return _unwrap(content, path), _header_in(content)
    raise UserError(f"{path} is not a weights file; give a .safetensors, .pth or .pt file")


def read_header(path: Path) -> tuple[Shapes, dict[str, str]]:
    """Shapes and header of a `.safetensors` file; no tensor is read. Raises UserError as `read_weights` does."""
    with _opened(path) as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


def load_into(network: nn.Module, path: Path | str) -> str:
    """Load the weights at `path` (file, checkpoint or run folder) into `network`; returns a line on how many they are.

    Names and shapes are compared before anything is copied; only the constants of the mean shifts may be left out of
    the file. Raises UserError where they differ: it tells which network and scale the file is for where it can.
    """
    path = weights_file(Path(path))
    state, metadata = read_weights(path)
    return _load_state(network, state, metadata, path)


def load_matching(network: nn.Module, path: Path | str) -> str:
    """Load the weights of another scale into `network`: all whose name and shape fit; returns a line on what did not.

    Only the upsampler, and constants that are never trained, may differ, and keep what they have. Raises UserError
    where anything else differs, and where nothing fits.
    """
    path = weights_file(Path(path))
    state, _ = read_weights(path)
    own = network.state_dict(keep_vars=True)
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    constants = {key for key, value in own.items() if not isinstance(value, nn.Parameter)}
    if fitting.keys() <= constants:
        raise UserError(f"{path} holds another network, nothing in it fits; choose weights of the same network")
    for key in (*own, *state):
        if key not in fitting and key not in constants and not _UPSAMPLER.match(key):
            found = tuple(state[key].shape) if key in state else "nothing"
            expected = tuple(own[key].shape) if key in own else "nothing"
            raise UserError(
                f"{path} differs beyond the upsampler: {key} is {found} where the network has {expected}; "
                "choose weights of the same network at any scale"
            )
    _copy(network, fitting, path)
    return _report(path, own, fitting)


def load_network(
    path: Path | str, name: str | None = None, scale: int | None = None, *, raw: bool = False
) -> nn.Module:
    """The network at `path`, in eval mode, float32 on the CPU, with gradients off.

    `path` is a file, a checkpoint folder (its EMA weights if it has them, unless `raw`) or a run folder (its newest
    checkpoint). Files written here tell `name` and `scale`; bare files are recognised by shape where those are left
    out: as networks of this package, else by the library spandrel. EDSR and RCAN files without mean shifts get the
    published ones; a RCAN trained without them is to be named `spandrel:RCAN`. Draws nothing from torch's generator.
    Raises UserError as `read_weights` and `load_into` do, and where `name` or `scale` contradicts the file.
    """
    path = weights_file(Path(path), raw=raw)
    state, metadata = read_weights(path)
    named = named_in(metadata, shapes_of(state), path)
    if named is not None:
        found_name, found_scale, options = named
        _refuse_contradiction(path, found_name, found_scale, name, scale)
        try:
            network = unfilled(found_name, found_scale, options)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        _load_state(network, state, metadata, path)
    elif name is not None and not spandrel_networks.is_name(name) and scale is not None:
        network = unfilled(name, scale, {})
        _load_state(network, state, metadata, path)
    else:
        network = _recognised(state, name, scale, path)
    return network.eval().requires_grad_(False)


def _recognised(state: State, name: str | None, scale: int | None, path: Path) -> nn.Module:
    """The network of a bare file."""
    if name is None or not spandrel_networks.is_name(name):
        fits = recognise(shapes_of(state))
        if len(fits) == 1:
            _refuse_contradiction(path, *fits[0], name, scale)
            network = unfilled(*fits[0], {})
            _load_state(network, state, {}, path)
            return network
        if name is not None:
            if name not in names():
                build(name, scale or SCALES[0])  # says which names there are
            raise UserError(f"{path} does not fit {name} at any scale; name another network, or none")
    try:
        found = spandrel_networks.recognise(state)
    except UserError as error:
        where = "" if name is not None else f" fits none of {', '.join(names())}, and"
        raise UserError(f"{path}{where or ':'} {error}") from error
    asked = None if name is None else spandrel_networks.architecture(name)
    _refuse_contradiction(path, found.architecture, found.scale, asked, scale)
    return found


def _refuse_contradiction(path: Path, name: str, scale: int, asked_name: str | None, asked_scale: int | None) -> None:
    if asked_name not in (None, name):
        raise UserError(f"{path} holds {name} x{scale}, no {asked_name}; name {name}, or give weights of {asked_name}")
    if asked_scale not in (None, scale):
        way = f"take --scale {scale}, or give weights for x{asked_scale}"
        raise UserError(f"{path} holds {name} x{scale}, not x{asked_scale}; {way}")


def unfilled(name: str, scale: int, options: Mapping[str, Any]) -> nn.Module:
    """A network to load weights into: on the meta device where it can be, so that sizes are compared first."""
    if spandrel_networks.is_name(name):
        with torch.random.fork_rng(devices=[]):
            return build(name, scale, **options)
    with torch.device("meta"):
        return build(name, scale, **options)


def weights_file(path: Path, *, raw: bool = False) -> Path:
    """The file that a run folder, a checkpoint folder or a file stands for; `raw` passes over an average."""
    if not path.is_dir():
        return path
    checkpoints = path / "checkpoints"
    if not checkpoints.is_dir():
        file = _in_checkpoint(path, raw)
        if file is None:
            raise UserError(f"{path} holds no weights; give a run folder, a checkpoint folder or a weights file")
        return file
    # Folders still being written start with "." or end in ".tmp", so the pattern passes over them.
    steps = [(int(m[1]), p) for p in checkpoints.iterdir() if (m := _STEP_FOLDER.fullmatch(p.name))]
    for _, folder in sorted(steps, reverse=True):
        if file := _in_checkpoint(folder, raw):
            return file
    raise UserError(f"{path} has no finished checkpoint yet; train longer or give a weights file")


def _in_checkpoint(folder: Path, raw: bool) -> Path | None:
    candidates = ("weights.safetensors",) if raw else ("ema.safetensors", "weights.safetensors")
    return next((folder / name for name in candidates if (folder / name).is_file()), None)


def _read_safetensors(path: Path) -> tuple[State, dict[str, str]]:
    with _opened(path) as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)
        metadata = file.metadata() or {}
    return _unwrap(state, path), metadata


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable .safetensors file ({error}); copy or download it again") from error


def _read_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):  # of what is odd in a file that may be refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if culprit := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{path} holds {culprit[1]} besides its weights and is refused, since loading it could run code; "
                "ask for a .safetensors file or for the bare state dict"
            ) from error
        raise UserError(f"{path} is not a weights file; copy or download it again") from error
    except Exception as error:  # damaged bytes make the reader trip in many ways
        raise UserError(f"{path} is damaged or not a weights file; copy or download it again") from error


def _header_in(content: Any) -> dict[str, str]:
    """The header that `export` writes beside the weights; other programs have other things under that name."""
    header = content.get(HEADER) if isinstance(content, Mapping) else None
    if not isinstance(header, Mapping) or _WRITER not in header:
        return {}
    return {str(key): str(value) for key, value in header.items()}


def _unwrap(content: Any, path: Path) -> State:
    for _ in range(_WRAPPINGS_AT_MOST):
        if isinstance(content, Mapping) and (wrapper := next((w for w in _WRAPPERS if w in content), None)):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"{path} holds no state dict; give a file of weights (params_ema, params or bare)")
    state = {str(key): value for key, value in content.items()}
    if odd := next((key for key, value in state.items() if not _is_plain(value)), None):
        raise UserError(f"{path} holds {odd!r}, which is no plain tensor of numbers; copy or download it again")
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _is_plain(value: Tensor) -> bool:
    """Whether a tensor is dense, real, and no larger than what the file holds of it."""
    if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.device.type != "cpu":
        return False
    if value.numel() == 0:
        return max(value.shape) <= _LARGEST_EMPTY_SIDE
    return value.untyped_storage().nbytes() >= value.numel() * value.element_size()


def _load_state(network: nn.Module, state: State, metadata: Mapping[str, str], path: Path) -> str:
    own = network.state_dict()
    complete = _with_constants(state, own)
    wanted = shapes_of(own)
    if wanted != shapes_of(complete):
        raise UserError(explain(wanted, shapes_of(state), metadata, path))
    if complete.keys() != state.keys():
        warnings.warn(f"{path} holds no mean shifts: the published ones are taken", stacklevel=3)
    if any(value.is_meta for value in own.values()):
        network.to_empty(device="cpu")
    _copy(network, complete, path)
    return _report(path, own, state)


def _with_constants(state: State, own: Mapping[str, Tensor]) -> State:
    """The state dict with the published mean shifts, where a network has them and a file leaves them out."""
    return {key: value for key, value in mean_shift_state().items() if key in own} | state


def _copy(network: nn.Module, state: State, path: Path) -> None:
    try:
        network.load_state_dict(state, strict=False)  # names and shapes are compared already
    except RuntimeError as error:
        raise UserError(f"{path} does not load: {str(error).splitlines()[-1].strip()}") from error


def _report(path: Path, own: Mapping[str, Tensor], loaded: Mapping[str, Tensor]) -> str:
    total = sum(value.numel() for value in own.values())
    count = sum(value.numel() for value in loaded.values())
    fresh = [key for key in own if key not in loaded]
    line = f"{path}: {len(loaded)} of {len(own)} tensors loaded ({count:,} of {total:,} parameters)"
    if not fresh:
        return line
    others = f" and {len(fresh) - _NAMED_AT_MOST} more" if len(fresh) > _NAMED_AT_MOST else ""
    return f"{line}; fresh: {', '.join(fresh[:_NAMED_AT_MOST])}{others}"
