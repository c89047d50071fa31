"""Engine options as keyword arguments of the Python API, under Quire's names or vLLM's."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from quire.config.engine import EngineConfig

# vLLM's names of options that Quire calls otherwise.
_RENAMED = {"gpu_memory_utilization": "memory", "block_size": "page_size"}
# vLLM's options with the one value that Quire has.
_FIXED: dict[str, Any] = {"tensor_parallel_size": 1, "pipeline_parallel_size": 1, "trust_remote_code": False}
# vLLM's options that change nothing here.
_IGNORED = {"enforce_eager", "disable_log_stats", "swap_space", "enable_chunked_prefill", "tokenizer_mode"}


def engine_config(model: str, options: Mapping[str, Any]) -> EngineConfig:
    """``options`` under Quire's or vLLM's names. Raises ``TypeError`` for an unknown one, naming the nearest."""
    known = {f.name for f in fields(EngineConfig)}
    chosen: dict[str, Any] = {}
    for name, value in options.items():
        name = _RENAMED.get(name, name)
        if name in _IGNORED or (name in _FIXED and value == _FIXED[name]):
            continue
        if name in _FIXED:
            raise TypeError(f"{name}={value!r} is not supported; {name} must be {_FIXED[name]!r}.")
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise TypeError(f"LLM has no option {name!r}" + (f"; did you mean {near[0]!r}?" if near else "."))
        chosen[name] = str(value) if name == "memory" else value
    return EngineConfig(model=model, **chosen)
