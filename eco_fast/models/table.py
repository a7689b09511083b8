"""Every network that has a name of its own. Nothing here imports PyTorch: completion reads this table too."""

from typing import Any

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {  # name -> module:class in this package, and its sizes
    "edsr": ("edsr:EDSR", {"blocks": 32, "channels": 256, "res_scale": 0.1}),
    "edsr-baseline": ("edsr:EDSR", {"blocks": 16, "channels": 64, "res_scale": 1.0}),
    "edsr-tiny": ("edsr:EDSR", {"blocks": 8, "channels": 32, "res_scale": 1.0}),
    "rcan": ("rcan:RCAN", {"groups": 10, "blocks": 20, "channels": 64}),
    "rlfn": ("rlfn:RLFN", {"blocks": 6, "channels": 52, "inner_channels": 52}),
    "rlfn-s": ("rlfn:RLFN", {"blocks": 6, "channels": 48, "inner_channels": 48}),
    "rlfn-ntire": ("rlfn:RLFN", {"blocks": 4, "channels": 46, "inner_channels": 48}),
}

_SWINIR = {"window_size": 8, "mlp_ratio": 2, "drop_path_rate": 0.0}  # no random depth: a run repeats to the bit
SPANDREL: dict[str, tuple[str, dict[str, Any]]] = {  # name -> architecture, sizes of Liang et al. 2021
    "swinir": (
        "SwinIR",
        _SWINIR
        | {"img_size": 48, "embed_dim": 180, "depths": [6] * 6, "num_heads": [6] * 6, "upsampler": "pixelshuffle"},
    ),
    "swinir-light": (
        "SwinIR",
        _SWINIR
        | {"img_size": 64, "embed_dim": 60, "depths": [6] * 4, "num_heads": [6] * 4, "upsampler": "pixelshuffledirect"},
    ),
}
