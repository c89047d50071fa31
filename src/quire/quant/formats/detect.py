"""Which quantisation a checkpoint has, and whether what the user asks for fits it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from quire.config.quantization import CHECKPOINT_METHODS, LOAD_METHODS
from quire.quant.formats.autoround import autoround_schemes
from quire.quant.formats.awq import awq_schemes
from quire.quant.formats.bitsandbytes import bitsandbytes_schemes
from quire.quant.formats.compressed_tensors import compressed_tensors_schemes
from quire.quant.formats.fp8 import fp8_schemes
from quire.quant.formats.gptq import gptq_schemes
from quire.quant.formats.modelopt import modelopt_schemes
from quire.quant.formats.mxfp4 import mxfp4_schemes
from quire.quant.formats.scheme import FLOATS, Scheme, Schemes
from quire.quant.formats.storage import Storage
from quire.weights.checkpoint import Checkpoint
from quire.weights.errors import CheckpointError
from quire.weights.hf_checkpoint import read_json

_FORMATS: dict[str, Schemes] = {
    "gptq": gptq_schemes,
    "awq": awq_schemes,
    "auto-round": autoround_schemes,
    "bitsandbytes": bitsandbytes_schemes,
    "compressed-tensors": compressed_tensors_schemes,
    "fp8": fp8_schemes,
    "mxfp4": mxfp4_schemes,
    "modelopt": modelopt_schemes,
}
# Beside the config, before 2024, and ModelOpt's still.
_OLD_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}
_KV_SCALES = (".k_scale", ".v_scale")


def storage_of(checkpoint: Checkpoint, quantization: str | None) -> Storage:
    """How a checkpoint's linear layers are stored.

    ``quantization``: what the user asked for. Raises ``CheckpointError`` where the two contradict each other, and for
    settings that are unknown.
    """
    own, config = _own(checkpoint)
    if own is None:
        return Storage(checkpoint, _plain, at_load=None if quantization is None else load_method(quantization))
    if quantization is not None and CHECKPOINT_METHODS.get(quantization) != own:
        raise CheckpointError(
            f"The checkpoint is quantised already, by {own}, so that --quantization {quantization} can't apply; "
            "leave the option out."
        )
    if own == "gguf":
        return Storage(checkpoint, _plain)
    kv_scales = bool(config.get("kv_cache_scheme")) or any(n.endswith(_KV_SCALES) for n in checkpoint.names())
    scheme_of = cache(_FORMATS[own](checkpoint, config))  # which goes through patterns, or reads JSON out of a tensor
    return Storage(checkpoint, scheme_of, kv_scales=kv_scales)


def _plain(module: str) -> Scheme | None:
    return None


def _own(checkpoint: Checkpoint) -> tuple[str | None, Mapping[str, Any]]:
    """The checkpoint's quantisation and its settings; ``None``: it has none."""
    if checkpoint.path.is_file():
        types = {checkpoint.info(name).type for name in checkpoint.names() if len(checkpoint.info(name).shape) > 1}
        return (None if types.issubset(FLOATS) else "gguf"), {}
    config = checkpoint.config.get("quantization_config")
    if config is None:
        config = next((old for file, method in _OLD_FILES.items() if (old := _old(checkpoint, file, method))), None)
    if config is None:
        return None, {}
    method = config.get("quant_method") if isinstance(config, Mapping) else None
    if method is None and isinstance(config, Mapping) and "config_groups" in config:
        method = "compressed-tensors"
    own = CHECKPOINT_METHODS.get(str(method))
    if own not in _FORMATS:
        raise CheckpointError(
            f"The checkpoint's quantisation {str(method)[:40]!r} is not supported; {', '.join(_FORMATS)} and GGUF are."
        )
    return own, config


def _old(checkpoint: Checkpoint, file: str, method: str) -> Mapping[str, Any] | None:
    config = read_json(checkpoint.path / file)
    return None if config is None else {"quant_method": method, **config}


def load_method(quantization: str) -> str:
    """The method of quantising at load that the user asked for. Raises ``CheckpointError`` if there is none."""
    method = LOAD_METHODS.get(quantization)
    if method is None:
        raise CheckpointError(
            f"--quantization {quantization} needs a checkpoint that is quantised so, and this one has plain weights; "
            f"at load they can be quantised by {', '.join(dict.fromkeys(LOAD_METHODS.values()))}."
        )
    return method
