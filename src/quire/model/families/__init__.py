"""Model families: each a file that turns a Hugging Face config into a spec and names the weights."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Protocol

from quire.model.config_reader import UnsupportedVariant
from quire.model.spec import DecoderSpec
from quire.model.weight_map import WeightMap
from quire.weights.errors import CheckpointError
from quire.weights.hf_checkpoint import with_flat_rope


class Family(Protocol):
    """A module of this package."""

    MODEL_TYPES: tuple[str, ...]
    WEIGHTS: WeightMap

    def spec(self, config: Mapping[str, Any]) -> DecoderSpec: ...


_MODULES = [import_module(f"{__name__}.{found.name}") for found in iter_modules(__path__)]
FAMILIES: dict[str, Any] = {name: module for module in _MODULES for name in module.MODEL_TYPES}


def describe(config: Mapping[str, Any]) -> tuple[DecoderSpec, WeightMap]:
    """The decoder that ``config`` calls for, and the names of its weights.

    Raises ``UnsupportedVariant`` where no family has it, ``CheckpointError`` for a config that makes no sense.
    """
    config = _of_text(config)
    model_type = _model_type(config)
    if model_type is None:
        raise CheckpointError("The model's configuration names no architecture: model_type must be a text.")
    if model_type not in FAMILIES:
        raise UnsupportedVariant(f"The architecture {model_type[:60]!r} is not supported. {nearest(model_type)}")
    family: Family = FAMILIES[model_type]
    return family.spec(config), family.WEIGHTS


def nearest(model_type: str) -> str:
    """A sentence that names the architectures most like ``model_type``."""
    alike = get_close_matches(model_type[:60], FAMILIES, n=3, cutoff=0.5)
    return f"The nearest that Quire has: {', '.join(alike)}." if alike else "docs/models.md lists those that Quire has."


def _model_type(config: Mapping[str, Any]) -> str | None:
    value = config.get("model_type")
    return value if isinstance(value, str) else None


def _of_text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part that describes the decoder of a model for images and text."""
    text = config.get("text_config")
    if _model_type(config) in FAMILIES or not isinstance(text, dict) or _model_type(text) not in FAMILIES:
        return config
    shared = {key: config[key] for key in ("eos_token_id", "tie_word_embeddings") if config.get(key) is not None}
    return with_flat_rope(shared | text)
