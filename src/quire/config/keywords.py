"""Engine options as keyword arguments of the Python API, under Quire's names or vLLM's."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from quire.config.engine import EngineConfig
from quire.config.sources import from_kwargs

# Options of vLLM's LLM that concern a server only.
_SERVER_ONLY = ("disable_log_stats",)


def engine_config(model: str, options: Mapping[str, Any]) -> EngineConfig:
    """``options`` under Quire's or vLLM's names.

    Raises ``ConfigError`` for an unknown name (naming the nearest), a feature that is missing, or a bad value; warns
    of arguments that have no effect.
    """
    chosen = {name: value for name, value in options.items() if name not in _SERVER_ONLY}
    config, notes = from_kwargs(EngineConfig, {"model": model, **chosen})
    for note in notes:
        warnings.warn(note, stacklevel=3)
    return config
