"""Which quantisation a checkpoint has, and whether what the user asks for fits it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from quire.config.quantization import CHECKPOINT_METHODS, LOAD_METHODS
from quire.quant.at_load import LoadReader
from quire.quant.autoround import autoround_schemes
from quire.quant.awq import awq_schemes
from quire.quant.bitsandbytes import bitsandbytes_schemes
from quire.quant.compressed_tensors import compressed_tensors_schemes
from quire.quant.fp8 import fp8_schemes
from quire.quant.gptq import gptq_schemes
from quire.quant.modelopt import modelopt_schemes
from quire.quant.mxfp4 import mxfp4_schemes
from quire.quant.reader import PlainReader, Reader, SchemeReader
from quire.quant.scheme import Scheme
from quire.weights.checkpoint import Checkpoint
from quire.weights.errors import CheckpointError
from quire.weights.hf_checkpoint import read_json

_CPU = torch.device("cpu")
Schemes = Callable[[Checkpoint, Mapping[str, Any]], Callable[[str], Scheme | None]]
_READERS: dict[str, Schemes] = {
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

logger = logging.getLogger("quire.quant")


def reader_of(
    checkpoint: Checkpoint,
    quantization: str | None,
    keep: Collection[str] = (),
    device: torch.device = _CPU,
) -> Reader:
    """The reader of a checkpoint's linear layers.

    ``quantization``: what the user asked for. ``keep``: endings of modules that quantisation at load leaves as they
    are (embedding, head, routers). ``device``: that of the kernels, where it is computed. Raises ``CheckpointError``
    where the two contradict each other.
    """
    own, config = _own(checkpoint)
    plain = PlainReader(checkpoint, device)
    if own is None:
        return plain if quantization is None else LoadReader(plain, load_method(quantization), keep, device)
    if quantization is not None and CHECKPOINT_METHODS.get(quantization) != own:
        raise CheckpointError(
            f"The checkpoint is quantised already, by {own}, so that --quantization {quantization} can't apply; "
            "leave the option out."
        )
    if own == "gguf":
        return plain
    if config.get("kv_cache_scheme") or any(name.endswith(_KV_SCALES) for name in checkpoint.names()):
        logger.warning(
            "The checkpoint's scales of keys and values (kv_cache_scheme) are not used: pages hold them in the type "
            "of activations, or of --kv-cache-dtype, whose fp8 has a finer scale for each head and token."
        )
    return SchemeReader(checkpoint, plain, _READERS[own](checkpoint, config))


def _own(checkpoint: Checkpoint) -> tuple[str | None, Mapping[str, Any]]:
    """The checkpoint's quantisation and its settings; ``None``: it has none."""
    if checkpoint.path.is_file():
        types = {checkpoint.info(name).type for name in checkpoint.names() if len(checkpoint.info(name).shape) > 1}
        return (None if types <= {"F32", "F16", "BF16"} else "gguf"), {}
    config = checkpoint.config.get("quantization_config")
    if config is None:
        config = next((old for file, method in _OLD_FILES.items() if (old := _old(checkpoint, file, method))), None)
    if config is None:
        return None, {}
    method = config.get("quant_method") if isinstance(config, Mapping) else None
    if method is None and isinstance(config, Mapping) and "config_groups" in config:
        method = "compressed-tensors"
    own = CHECKPOINT_METHODS.get(str(method))
    if own not in _READERS:
        raise CheckpointError(
            f"The checkpoint's quantisation {str(method)[:40]!r} is not supported; {', '.join(_READERS)} and GGUF are."
        )
    return own, config


def _old(checkpoint: Checkpoint, file: str, method: str) -> Mapping[str, Any] | None:
    config = read_json(checkpoint.path / file)
    return None if config is None else {"quant_method": method, **config}


def load_method(quantization: str) -> str:
    """The name that ``LoadReader`` has for what the user asked for. Raises ``CheckpointError`` if it has none."""
    method = LOAD_METHODS.get(quantization)
    if method is None:
        raise CheckpointError(
            f"--quantization {quantization} needs a checkpoint that is quantised so, and this one has plain weights; "
            f"at load they can be quantised by {', '.join(dict.fromkeys(LOAD_METHODS.values()))}."
        )
    return method
