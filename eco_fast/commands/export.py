"""`eco-fast export`: the weights of a run in the formats of others."""

import importlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eco_fast.errors import UserError
from eco_fast.extras import install
from eco_fast.files import write, writing
from eco_fast.models import architecture_of
from eco_fast.models.edsr import EDSR
from eco_fast.models.layers import RGB_RANGE, mean_shift_state
from eco_fast.models.rcan import RCAN
from eco_fast.models.recognise import recognise, shapes_of
from eco_fast.models.rlfn import RLFN
from eco_fast.models.weights import (
    HEADER,
    identity,
    load_network,
    read_weights,
    save_weights,
    versions,
    weights_file,
)

State = Mapping[str, Tensor]

_EXTENSIONS = {"safetensors": ".safetensors", "basicsr": ".pth", "onnx": ".onnx"}

_ENDS = {r"head\.0\.": "conv_first.", r"tail\.0\.": "upsample.", r"tail\.1\.": "conv_last."}
_BASICSR_NAMES: dict[type[nn.Module], dict[str, str]] = {  # beginning of a published name -> of BasicSR's
    EDSR: _ENDS
    | {
        r"body\.(\d+)\.body\.0\.": r"body.\1.conv1.",
        r"body\.(\d+)\.body\.2\.": r"body.\1.conv2.",
        r"body\.\d+\.(?!body)": "conv_after_body.",
    },
    RCAN: _ENDS
    | {
        r"body\.(\d+)\.body\.(\d+)\.body\.([02])\.": r"body.\1.residual_group.\2.rcab.\3.",
        r"body\.(\d+)\.body\.(\d+)\.body\.3\.conv_du\.0\.": r"body.\1.residual_group.\2.rcab.3.attention.1.",
        r"body\.(\d+)\.body\.(\d+)\.body\.3\.conv_du\.2\.": r"body.\1.residual_group.\2.rcab.3.attention.3.",
        r"body\.(\d+)\.body\.\d+\.(?!body)": r"body.\1.conv.",
        r"body\.\d+\.(?!body)": "conv_after_body.",
    },
}

_TRACED = (2, 3, 33, 47)  # whose sides are multiples of nothing, so that padding is traced too
_CHECKED = ((2, 3, 33, 47), (1, 3, 48, 26))  # the size that was traced, and another
_TOLERANCE = 1e-5
_HALF_TOLERANCE = 1 / 255  # one step of an 8-bit image

_NOT_IN_SPANDREL = (EDSR, RLFN)

_HINT = "name another file with --out"  # where one cannot be written


def export(
    weights: Path,
    kind: str,
    out: Path | None = None,
    *,
    raw: bool = False,
    half: bool = False,
    licence: str | None = None,
    force: bool = False,
) -> Path:
    """Write the weights of a run to one file, print where, and return its path.

    Args:
        weights: Run folder (its newest checkpoint), checkpoint folder or weights file.
        kind: "safetensors": with a header that tells the network. "basicsr": `params` and `params_ema` with BasicSR's
            names, or those of the published files where it has no such network, and the header beside them. "onnx":
            float32 (batch, 3, height, width) in [0, 1] `lr` to `sr`, scale times as high and wide, for any sizes; the
            header is its metadata.
        out: The file; by default NETWORK-xSCALE in the current folder.
        raw: Take the weights themselves where a run also keeps their average.
        half: Weights in float16, all but the constants of the mean shifts. ONNX computes in it too.
        licence: Text for the header, under `license`, as others call it.
        force: Replace a file.

    Raises:
        UserError: Bad input, a missing package, a network that ONNX cannot express, or a file that cannot be written.
    """
    if kind not in _EXTENSIONS:
        raise UserError(f"unknown format {kind!r}; take one of {', '.join(_EXTENSIONS)}")
    if raw and not weights.is_dir():
        raise UserError(f"--raw chooses among the weights of a run, and {weights} is no folder; leave it out")
    file = weights_file(weights, raw=raw)
    network = load_network(file)
    header = _header(network, file, licence)
    out = out or Path(_label(network, header) + _EXTENSIONS[kind])
    _refuse(out, kind, force)
    if kind == "onnx":
        print("tracing for ONNX; deep networks take minutes", flush=True)
        content, difference = to_onnx(network, header, half=half)
        lines = [f"onnxruntime and PyTorch differ by at most {difference:.1e}"]
        write(out, content, _HINT)
    elif kind == "basicsr":
        raw_file = weights_file(file.parent, raw=True) if weights.is_dir() else file
        averaged = None if raw_file == file else network
        content, lines = to_basicsr(load_network(raw_file), averaged, header=header, half=half)
        write(out, content, _HINT)
    else:
        lines = []
        state = _halved(network.state_dict(), {}) if half else network.state_dict()
        with writing(out, _HINT):
            out.parent.mkdir(parents=True, exist_ok=True)
            save_weights(out, state, header)
    print("\n".join([f"{file} -> {out}", *lines, *([] if kind == "onnx" else [_readers(network)])]))
    return out


def to_basicsr(
    network: nn.Module, averaged: nn.Module | None = None, *, header: Mapping[str, str], half: bool = False
) -> tuple[bytes, list[str]]:
    """A `.pth` file as BasicSR writes it, and what to know about it.

    Where BasicSR has other names than the published files, `state_dict` holds the latter, of the average if there is
    one: libraries that know the published names, spandrel for one, look there first. Its tensors are those of `params`
    or `params_ema`, so the file is no larger.
    """
    networks = {"params": network} if averaged is None else {"params": network, "params_ema": averaged}
    content: dict[str, dict[str, Tensor]] = {key: dict(net.state_dict()) for key, net in networks.items()}
    lines: list[str] = []
    if type(network) in _BASICSR_NAMES:
        content["state_dict"] = list(content.values())[-1]
        content |= {key: basicsr_state(net) for key, net in networks.items()}
        settings = ", ".join(f"{key}: {value}" for key, value in basicsr_settings(network).items())
        lines = [f"network_g of BasicSR: {{{settings}}}"]
    if half:
        made: dict[int, Tensor] = {}
        content = {key: _halved(state, made) for key, state in content.items()}
    buffer = io.BytesIO()
    torch.save({**content, HEADER: dict(header)}, buffer)
    return buffer.getvalue(), lines


def basicsr_state(network: nn.Module) -> dict[str, Tensor]:
    """The weights of an EDSR or RCAN under BasicSR's names; no tensor is copied.

    BasicSR has the mean shifts in its code, not in its files. Raises UserError where those of the network are others.
    """
    rules = _BASICSR_NAMES[type(network)]
    published = mean_shift_state()
    state = {}
    for key, value in network.state_dict().items():
        if key in published:
            if not torch.allclose(value.cpu(), published[key], rtol=0, atol=1e-3):
                raise UserError(f"{key} is not the published colour mean, the only one in BasicSR; export safetensors")
            continue
        pattern, name = next((pattern, name) for pattern, name in rules.items() if re.match(pattern, key))
        state[re.sub(pattern, name, key, count=1)] = value
    return state


def basicsr_settings(network: nn.Module) -> dict[str, Any]:
    """The `network_g` of BasicSR's configuration for an EDSR or RCAN."""
    body: Any = network.get_submodule("body")
    settings: dict[str, Any] = {
        "type": type(network).__name__,
        "num_in_ch": 3,
        "num_out_ch": 3,
        "num_feat": network.get_parameter("head.0.weight").shape[0],
        "upscale": network.scale,
        "img_range": RGB_RANGE,
    }
    if isinstance(network, EDSR):
        return settings | {"num_block": len(body) - 1, "res_scale": body[0].res_scale}
    squeezed = body[0].body[0].body[3].conv_du[0]
    return settings | {
        "num_group": len(body) - 1,
        "num_block": len(body[0].body) - 1,
        "squeeze_factor": squeezed.in_channels // squeezed.out_channels,
    }


def to_onnx(network: nn.Module, header: Mapping[str, str], *, half: bool = False) -> tuple[bytes, float]:
    """An ONNX file for any batch and size, and by how much it differs from PyTorch, at most, at two sizes.

    With `half` its weights and what it computes are float16, between input and output in float32.

    Raises:
        UserError: A package is missing, the network cannot be expressed, or what was traced holds for one size only.
    """
    try:
        for package in ("onnx", "onnxscript", "onnxruntime"):
            importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"ONNX needs a package ({error}); {install('onnx')}") from error
    free = torch.export.Dim.DYNAMIC
    sizes = ({0: free, 2: free, 3: free},)
    x = torch.rand(_TRACED, generator=torch.Generator().manual_seed(0))
    try:
        with _quiet():
            # Strict: else whole numbers that a network computes from the batch become constants.
            traced = torch.export.export(network, (x,), dynamic_shapes=sizes, strict=True)
            program = torch.onnx.export(traced, dynamo=True, input_names=["lr"], output_names=["sr"], verbose=False)
            assert program is not None
            program.model.metadata_props.update(header)
            model = program.model_proto
            _name_sizes(model)
            if half:
                converter: Any = importlib.import_module("onnxruntime.transformers.float16")
                model = converter.convert_float_to_float16(model, keep_io_types=True)
            content = model.SerializeToString()
            difference = _difference(network, content)
    except Exception as error:  # each of three libraries has its own for what it cannot do
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"ONNX cannot express this network ({reason}); export safetensors or basicsr") from error
    if not difference <= (_HALF_TOLERANCE if half else _TOLERANCE):
        raise UserError(f"the ONNX file would differ from PyTorch by {difference:.1e}; export safetensors or basicsr")
    return content, difference


def _name_sizes(model: Any) -> None:
    """Call the sizes that may vary batch, height and width.

    The exporter only numbers them: it refuses names for sizes of which tracing has found a bound, as padding has.
    """
    graph = model.graph
    axes = graph.input[0].type.tensor_type.shape.dim
    names = {axes[axis].dim_param: name for axis, name in ((0, "batch"), (2, "height"), (3, "width"))}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = re.sub(r"\w+", lambda symbol: names.get(symbol[0], symbol[0]), size.dim_param)


def _halved(state: State, made: dict[int, Tensor]) -> dict[str, Tensor]:
    """The weights in float16, each only once: `made` holds them by their addresses.

    Not the mean shifts: they are constants of up to 255, which float16 would move by a sixteenth of an 8-bit step.
    """
    constants = mean_shift_state()
    return {
        key: made.setdefault(value.data_ptr(), value.half())
        if value.is_floating_point() and key not in constants
        else value
        for key, value in state.items()
    }


def _readers(network: nn.Module) -> str:
    """A line on which other programs read the weights."""
    if isinstance(network, _NOT_IN_SPANDREL):
        return f"spandrel and chaiNNer do not know {type(network).__name__}; for chaiNNer export --format onnx"
    return "spandrel reads it, and so does chaiNNer"


def _difference(network: nn.Module, content: bytes) -> float:
    """The largest difference between PyTorch and onnxruntime on noise."""
    onnxruntime: Any = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is fatal comes as an exception
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    differences = []
    for shape in _CHECKED:
        x = torch.rand(shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = network(x)
        (sr,) = session.run(["sr"], {"lr": x.numpy()})
        if sr.shape != tuple(expected.shape):
            raise UserError(f"its output is {sr.shape}, not {tuple(expected.shape)}")
        differences.append((torch.from_numpy(sr) - expected).abs().max().item())
    return max(differences)


def _header(network: nn.Module, file: Path, licence: str | None) -> dict[str, str]:
    """The header of the file, or one made from the shapes in it; spandrel needs none to recognise its networks."""
    _, header = read_weights(file)
    if "model" not in header:
        fits = recognise(shapes_of(network.state_dict()))
        named = {"architecture": architecture_of(network), "scale": str(network.scale)}
        header = identity(fits[0][0], {}, fits[0][1]) if len(fits) == 1 else named | versions()
    header = versions() | header  # of checkpoints from before they were written
    return header if licence is None else {**header, "license": licence}


def _label(network: nn.Module, header: Mapping[str, str]) -> str:
    name = header.get("model") or architecture_of(network)
    return f"{name.rpartition(':')[2].lower()}-x{network.scale}"


def _refuse(out: Path, kind: str, force: bool) -> None:
    if out.suffix != _EXTENSIONS[kind]:
        raise UserError(f"{out} does not end in {_EXTENSIONS[kind]}, as {kind} files do; rename it")
    if out.exists() and not force:
        raise UserError(f"{out} is there already; replace it with --force or name another file with --out")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, which reports at length on problems that it then solves by itself."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        nowhere = io.StringIO()
        with warnings.catch_warnings(action="ignore"), redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield
    finally:
        logging.disable(before)
