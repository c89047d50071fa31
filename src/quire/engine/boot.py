"""What the parent tells the engine's process before anything else."""

from __future__ import annotations

import msgspec

from quire.config.engine import EngineConfig


class Boot(msgspec.Struct):
    """``runner``: what builds the runner, as ``module:function``; called with the config and a progress callback."""

    config: EngineConfig
    runner: str
    inbox: str  # ZeroMQ address that brings ClientMessages
    outbox: str  # ... and one that takes EngineMessages
    parent: int
    log_level: str = "info"
