"""How an engine gets its runner, and what its process is told before anything else."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import msgspec

from quire.config.engine import EngineConfig
from quire.engine.plan import LoadedRunner

DEFAULT_RUNNER = "quire.runtime.build:build_runner"

BuildRunner = Callable[[EngineConfig, Callable[[str], None]], LoadedRunner]


class Boot(msgspec.Struct):
    """``runner``: what builds the runner, as ``module:function``; called with the config and a progress callback."""

    config: EngineConfig
    runner: str
    inbox: str  # ZeroMQ address that brings ClientMessages
    outbox: str  # ... and one that takes EngineMessages
    parent: int
    spawned: float  # time.time()
    log_level: str = "info"


def runner_factory(name: str) -> BuildRunner:
    """The function that ``module:function`` names: the engine knows no runtime until then."""
    module, _, function = name.partition(":")
    factory: BuildRunner = getattr(importlib.import_module(module), function)
    return factory
