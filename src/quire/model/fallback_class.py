"""Whether Transformers has a class for a checkpoint without a family: found without importing it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quire.model import transformers_index
from quire.model.config_reader import ConfigReader
from quire.model.fallback_refusals import refusal
from quire.model.families import nearest
from quire.weights.checkpoint import Checkpoint
from quire.weights.errors import CheckpointError

SIZES = ("num_hidden_layers", "hidden_size", "vocab_size", "max_position_embeddings", "num_attention_heads")
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
TEXT_PART = "model.language_model."  # how names in a model for images and text begin


@dataclass(frozen=True)
class KnownClass:
    """What is known without importing Transformers. ``certain``: whether its index of classes could be read."""

    architecture: str
    text_only: bool
    certain: bool


def known_class(checkpoint: Checkpoint) -> KnownClass:
    """Raises ``CheckpointError`` for what no class is there for, or can't run here."""
    config = checkpoint.config
    architecture = str(config.get("model_type"))[:60]
    if reason := refusal(config):
        raise CheckpointError(unsupported(architecture, reason))
    package = transformers_index.installed()
    if package is None:
        raise CheckpointError(
            f"The architecture {architecture!r} has no family of Quire's own; to run it through Transformers, "
            "pip install 'quire-llm[transformers]'."
        )
    decoders = transformers_index.decoders(package)
    text_only = decoders is not None and _text_type(config) in decoders and _has_text_part(checkpoint)
    if decoders is not None and config.get("model_type") not in decoders and not text_only:
        raise CheckpointError(unknown(architecture))
    if not checkpoint.path.is_dir():
        raise CheckpointError(f"The architecture {architecture!r} can only be run from a Hugging Face directory.")
    if config.get("quantization_config"):
        raise CheckpointError(f"Quire reads no quantised checkpoints of the architecture {architecture!r}.")
    for key in (*SIZES, *_OTHER_SIZES):
        ConfigReader(config).count(key, default=1)
    return KnownClass(architecture, text_only, decoders is not None)


def _text_type(config: Mapping[str, Any]) -> str | None:
    text = config.get("text_config")
    kind = text.get("model_type") if isinstance(text, dict) else None
    return kind if isinstance(kind, str) else None


def _has_text_part(checkpoint: Checkpoint) -> bool:
    return any(name.startswith(TEXT_PART) for name in checkpoint.names())


def unsupported(architecture: str, reason: str) -> str:
    return (
        f"The architecture {architecture!r} has no family of Quire's own and cannot run through Transformers: {reason}."
        f" {nearest(architecture)}"
    )


def unknown(architecture: str) -> str:
    return (
        f"The architecture {architecture!r} is known neither to Quire nor to the Transformers installed here, as a "
        f"causal language model; a newer one may know it. {nearest(architecture)}"
    )
