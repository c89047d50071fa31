"""Quire: an inference engine and OpenAI-compatible server for open-weight language models.

Names are imported when first used, so that ``import quire`` and ``quire --version`` load no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from quire.version import __version__

if TYPE_CHECKING:
    from quire.async_llm import AsyncLLM
    from quire.config.engine import EngineConfig
    from quire.llm import LLM
    from quire.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput
    from quire.params import ParameterError, SamplingParams

__all__ = [
    "LLM",
    "AsyncLLM",
    "CompletionOutput",
    "EngineConfig",
    "Logprob",
    "ParameterError",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
    "__version__",
]

_HOME = {
    "LLM": "quire.llm",
    "AsyncLLM": "quire.async_llm",
    "EngineConfig": "quire.config.engine",
    "CompletionOutput": "quire.outputs",
    "Logprob": "quire.outputs",
    "RequestMetrics": "quire.outputs",
    "RequestOutput": "quire.outputs",
    "ParameterError": "quire.params",
    "SamplingParams": "quire.params",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'quire' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
