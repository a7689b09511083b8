"""Networks of the library `spandrel`: any of its architectures by name, and any file that it recognises.

The library comes with the extra `spandrel` and is imported when a network of it is first asked for.
"""

import importlib
import inspect
import sys
import warnings
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from functools import cache
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eco_fast.errors import UserError
from eco_fast.extras import install
from eco_fast.models import SCALES
from eco_fast.models.layers import FloatConv2d
from eco_fast.models.table import SPANDREL

PREFIX = "spandrel:"
"""`spandrel:NAME` is the architecture of that name, its sizes the library's own where no options replace them."""

_SCALE_OPTIONS = ("upscale", "scale", "upscaling_factor", "upscale_factor", "up_scale")  # what architectures call it
_PAD_THEMSELVES = {"CRAFT"}  # what the library adds before costs CRAFT 0.03 dB on Set5 x4


class SpandrelNetwork(nn.Module):
    """A network of the library for images of any size.

    Its state dict has the names that the library knows, so files written from it are ordinary files of that
    architecture. The convolutions that make the picture compute in float32 also under autocast.

    Attributes:
        scale: 2, 3 or 4.
        architecture: The library's name of it, such as SwinIR.
    """

    def __init__(self, model: nn.Module, descriptor: Any) -> None:
        super().__init__()
        self.model = model
        self.scale = int(descriptor.scale)
        self.architecture = str(descriptor.architecture.id)
        self._call: Callable[[nn.Module, Tensor], Tensor] = descriptor._call_fn  # picks the picture of several outputs
        sizes = descriptor.size_requirements
        if self.architecture in _PAD_THEMSELVES:
            sizes = type(sizes)(minimum=sizes.minimum)
        self._padding: Callable[[int, int], tuple[int, int]] = sizes.get_padding
        convolutions = [
            module
            for module in model.modules()
            if isinstance(module, nn.Conv2d) and type(module).forward is nn.Conv2d.forward
        ]
        to_colours = [c for c in convolutions if c.out_channels == 3]
        to_subpixels = [c for c in convolutions if c.out_channels == 3 * self.scale**2][-1:]
        for convolution in to_colours or to_subpixels:
            convolution.__class__ = FloatConv2d
        self.register_state_dict_post_hook(_with_published_names)
        self.register_load_state_dict_pre_hook(_with_own_names)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, h, w) float in [0, 1] -> (B, 3, scale h, scale w) float32, about [0, 1] and not clamped."""
        height, width = x.shape[-2:]
        right, bottom = self._padding(width, height)
        if not right and not bottom:
            return self._call(self.model, x.float().clone()).float()  # some architectures write into their input
        mirrored = F.pad(x.float(), (0, min(right, width - 1), 0, min(bottom, height - 1)), mode="reflect")
        right, bottom = width + right - mirrored.shape[-1], height + bottom - mirrored.shape[-2]
        sr = self._call(self.model, F.pad(mirrored, (0, right, 0, bottom), mode="replicate"))
        return sr[..., : self.scale * height, : self.scale * width].float()


def is_name(name: str) -> bool:
    """Whether `name` is that of a network of the library."""
    return name in SPANDREL or name.startswith(PREFIX)


def names() -> list[str]:
    """The networks that have a name of their own; every other architecture is `spandrel:NAME`."""
    return list(SPANDREL)


def architecture(name: str) -> str:
    """The library's name for the architecture of the network `name`."""
    return SPANDREL[name][0] if name in SPANDREL else name.removeprefix(PREFIX)


def build(name: str, scale: int, **options: Any) -> SpandrelNetwork:
    """A network with fresh weights; `options` are the keyword arguments of its class in the library.

    Raises UserError where the library cannot be imported, has no such architecture, refuses an option, or where the
    result is no network for RGB super-resolution at this scale.
    """
    classes = _classes(library())
    kind = classes.get(architecture(name))
    if kind is None:
        raise UserError(f"spandrel has no architecture {architecture(name)!r}; it has {', '.join(classes)}")
    arguments = inspect.signature(kind).parameters
    if unknown := options.keys() - arguments.keys():
        raise UserError(f"{name} has no option {min(unknown)!r}; it has {', '.join(arguments)}")
    scale_option = next((option for option in _SCALE_OPTIONS if option in arguments), None)
    if scale_option is None:
        raise UserError(f"{name} has no scale, so it is no network for super-resolution; choose another")
    if scale_option in options:
        raise UserError(f"the scale of {name} is set with --scale; leave {scale_option} out of its options")
    sizes = SPANDREL[name][1] if name in SPANDREL else {}
    try:
        with warnings.catch_warnings(action="ignore"):  # of functions of PyTorch that architectures still use
            model = kind(**{scale_option: scale}, **(sizes | options))
        network = SpandrelNetwork(model, _describe(model.state_dict()))
    except UserError:
        raise
    except Exception as error:  # whatever an architecture raises for sizes that do not go together
        raise UserError(f"{name} x{scale} cannot be built: {_first_line(error)}; fix its options") from error
    if network.scale != scale:
        raise UserError(f"{name} cannot be built at x{scale}, only at x{network.scale}; choose that scale")
    return network


def library() -> ModuleType:
    """The library, also beside a torchvision whose operators were not compiled for this PyTorch.

    Raises UserError where it, or what it needs, cannot be imported.
    """
    try:
        with suppress(ImportError):  # the library says it better
            _import_torchvision()
        return importlib.import_module("spandrel")
    except (ImportError, RuntimeError) as error:
        raise UserError(f"spandrel cannot be imported ({_first_line(error)}); {install('spandrel')}") from error


def _import_torchvision() -> None:
    """Import it without its operators where it has none for this PyTorch: PyPI has those for CUDA builds only.

    The library takes from it what transforms pictures, which is Python.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        _declare_operators()
        importlib.import_module("torchvision")


@cache  # what is declared is there as long as what this returns
def _declare_operators() -> torch.library.Library:
    """The operators that the import of torchvision takes for granted, without code."""
    operators = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return operators


def recognise(state: dict[str, Tensor]) -> SpandrelNetwork:
    """The network that the library finds in a state dict, with its weights.

    Raises UserError where the library cannot be imported, finds nothing, or finds no network for RGB super-resolution.
    """
    spandrel = library()
    try:
        descriptor = _describe(state)
    except spandrel.UnsupportedModelError:
        raise UserError(
            "spandrel does not know it either; name its network and scale to see where it differs"
        ) from None
    except UserError:
        raise
    except Exception as error:  # state dicts that only look like one of its architectures
        raise UserError(f"spandrel cannot build it ({_first_line(error)}); give another file") from error
    return SpandrelNetwork(descriptor.model, descriptor)


def _describe(state: dict[str, Tensor]) -> Any:
    """The library's descriptor of what it finds in a state dict; UserError unless that is RGB super-resolution."""
    registry = library().MAIN_REGISTRY
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        found = registry.load(dict(state))
    channels = found.input_channels, found.output_channels
    if found.purpose != "SR" or channels != (3, 3) or found.scale not in SCALES:
        raise UserError(
            f"{found.architecture.id} of spandrel maps {channels[0]} to {channels[1]} channels at x{found.scale} for "
            f"{found.purpose}; choose one for SR of RGB images at x2, x3 or x4"
        )
    return found


def _classes(library: ModuleType) -> dict[str, type[nn.Module]]:
    """The networks' classes by name: an architecture of the library has one or several."""
    modules = [sys.modules[type(entry.architecture).__module__] for entry in library.MAIN_REGISTRY]
    found = {name: getattr(module, name) for module in modules for name in module.__all__}
    return {name: kind for name, kind in found.items() if issubclass(kind, nn.Module)}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _with_published_names(module: nn.Module, state: MutableMapping[str, Any], prefix: str, *_: Any) -> None:
    """Hook: what `state_dict` gives, without `model.`."""
    for key in [key for key in state if key.startswith(f"{prefix}model.")]:
        state[prefix + key.removeprefix(f"{prefix}model.")] = state.pop(key)


def _with_own_names(module: nn.Module, state: MutableMapping[str, Any], prefix: str, *_: Any) -> None:
    """Hook: what `load_state_dict` takes, with `model.`."""
    for key in [key for key in state if key.startswith(prefix)]:
        state[f"{prefix}model.{key.removeprefix(prefix)}"] = state.pop(key)
