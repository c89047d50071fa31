"""uvicorn around the application."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn

from quire.config.server import ServerConfig
from quire.server.app import create_app
from quire.server.limits import BoundedProtocol
from quire.server.service import Service

_KEEP_ALIVE_SECONDS = 65  # longer than clients keep idle connections: they, not the server, close them
_CLOSE_SECONDS = 2


class HttpFront:
    """Serves ``service`` on a socket, from ``listen`` to ``close``."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._server = _Server(_config(service))
        self._task: asyncio.Task[None] | None = None

    def listen(self, sock: socket.socket) -> None:
        self._task = asyncio.create_task(self._server.serve(sockets=[sock]))

    async def close(self) -> None:
        """Close the socket and all connections."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the lifecycle's: it drains before it stops this server."""
        yield


def _config(service: Service) -> uvicorn.Config:
    config: ServerConfig = service.config
    return uvicorn.Config(
        create_app(service),
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_CLOSE_SECONDS,
        ssl_keyfile=config.ssl_keyfile,
        ssl_certfile=config.ssl_certfile,
    )
