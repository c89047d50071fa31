"""ModelOpt checkpoints (NVIDIA's): 8-bit floats, MXFP8 or NVFP4, one kind for all quantised layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from quire.ops.shapes import ActivationQuant
from quire.quant.formats.fp8 import MX_BLOCK, Fp8Scheme
from quire.quant.formats.nvfp4 import MODELOPT as NVFP4
from quire.quant.formats.scheme import Scheme, Settings
from quire.weights.checkpoint import Checkpoint

_SCALE = ".weight_scale"
_SCHEMES: dict[str, Scheme] = {
    "FP8": Fp8Scheme(_SCALE, static=".input_scale"),
    "FP8_PER_CHANNEL_PER_TOKEN": Fp8Scheme(_SCALE, dynamic=ActivationQuant("fp8")),
    "MXFP8": Fp8Scheme(_SCALE, MX_BLOCK),
    "NVFP4": NVFP4,
}


def modelopt_schemes(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Callable[[str], Scheme | None]:
    """The scheme of each module, ``None`` for a plain one. Raises ``CheckpointError`` for unknown settings."""
    settings, names = Settings("modelopt", config), checkpoint.names()
    if "quant_algo" not in config:  # in a file of its own, it has a section of its own
        settings = settings.group("quantization")
    scheme = _SCHEMES[settings.one_of("quant_algo", "none", tuple(_SCHEMES))]
    return lambda module: scheme if module + _SCALE in names else None
