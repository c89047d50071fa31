"""Model families: each a file that turns a Hugging Face config into a spec and names the weights."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Protocol

from quire.model.spec import DecoderSpec
from quire.model.weight_map import WeightMap
from quire.weights.errors import CheckpointError


class Family(Protocol):
    """A module of this package."""

    MODEL_TYPES: tuple[str, ...]
    WEIGHTS: WeightMap

    def spec(self, config: Mapping[str, Any]) -> DecoderSpec: ...


_MODULES = [import_module(f"{__name__}.{found.name}") for found in iter_modules(__path__)]
FAMILIES: dict[str, Any] = {name: module for module in _MODULES for name in module.MODEL_TYPES}


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a checkpoint's config. Raises ``CheckpointError`` naming what is supported."""
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise CheckpointError(
            f"The architecture {str(model_type)[:60]!r} is not supported; supported are {', '.join(sorted(FAMILIES))}."
        )
    family: Family = FAMILIES[model_type]
    return family
