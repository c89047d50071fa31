"""Which Transformers class runs a checkpoint without a family, and with what config. Unknown ones are refused first."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quire.model import transformers_index
from quire.model.config_reader import ConfigReader
from quire.model.families import nearest
from quire.weights.checkpoint import Checkpoint
from quire.weights.errors import CheckpointError

_SIZES = ("num_hidden_layers", "hidden_size", "vocab_size", "max_position_embeddings", "num_attention_heads")
_OTHER_SIZES = (
    "n_layer",
    "n_layers",
    "num_layers",
    "n_embd",
    "d_model",
    "n_positions",
    "n_head",
    "n_heads",
    "num_heads",
)  # what some architectures call them
_TEXT_PART = "model.language_model."  # how names in a model for images and text begin
_BATCH_DEPENDENT = ("dynamic", "longrope")  # rope scalings that Transformers chooses by the longest of a batch


@dataclass(frozen=True)
class ClassConfig:
    """``config``: Transformers' own. ``renamed``: expressions in the checkpoint's names, and what they become."""

    config: Any
    renamed: Mapping[str, str] | None = None


def class_config(checkpoint: Checkpoint, architecture: str) -> ClassConfig:
    """Of a model for images and text that of the text part, where that has a class of its own.

    Raises ``CheckpointError`` for what no class is there for, or can't run here.
    """
    path, config = checkpoint.path, checkpoint.config
    package = transformers_index.installed()
    if package is None:
        raise CheckpointError(
            f"The architecture {architecture!r} has no family of Quire's own; to run it through Transformers, "
            "pip install 'quire-llm[transformers]'."
        )
    decoders = transformers_index.decoders(package)
    text_only = decoders is not None and _text_type(config) in decoders and _has_text_part(checkpoint)
    if decoders is not None and config.get("model_type") not in decoders and not text_only:
        raise CheckpointError(_unknown(architecture))
    if not path.is_dir():
        raise CheckpointError(f"The architecture {architecture!r} can only be run from a Hugging Face directory.")
    if config.get("quantization_config"):
        raise CheckpointError(f"Quire reads no quantised checkpoints of the architecture {architecture!r}.")
    for key in (*_SIZES, *_OTHER_SIZES):
        ConfigReader(config).count(key, default=1)
    from transformers import AutoConfig

    try:
        loaded = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # spoilt, or unknown or in need of code of its own
        if decoders is None:
            raise CheckpointError(_unknown(architecture)) from error
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"Transformers can't read this config of the architecture {architecture!r}: {reason}"
        ) from error
    text = loaded.get_text_config()
    for key in _SIZES:
        ConfigReader({key: getattr(text, key, None)}).count(key, default=1)
    rope = getattr(text, "rope_parameters", None) or {}
    if isinstance(rope, dict) and rope.get("rope_type") in _BATCH_DEPENDENT:
        raise CheckpointError(
            f"The rope scaling {rope['rope_type']!r} of the architecture {architecture!r} would make tokens depend "
            "on the other requests of a batch: Quire does not run it through Transformers."
        )
    return ClassConfig(text, {f"^{re.escape(_TEXT_PART)}": "model."}) if text_only else ClassConfig(loaded)


def _text_type(config: Mapping[str, Any]) -> str | None:
    text = config.get("text_config")
    kind = text.get("model_type") if isinstance(text, dict) else None
    return kind if isinstance(kind, str) else None


def _has_text_part(checkpoint: Checkpoint) -> bool:
    return any(name.startswith(_TEXT_PART) for name in checkpoint.names())


def _unknown(architecture: str) -> str:
    return (
        f"The architecture {architecture!r} is known neither to Quire nor to the Transformers installed here, as a "
        f"causal language model; a newer one may know it. {nearest(architecture)}"
    )
