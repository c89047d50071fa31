"""``quire serve``."""

from __future__ import annotations

from quire.config.engine import EngineConfig
from quire.config.server import ServerConfig


def run(engine: EngineConfig, server: ServerConfig) -> int:
    from quire.server.lifecycle import run_server

    return run_server(engine, server)
