"""A server as a child process: started on a free port, waited for, stopped politely."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from quire.client import ApiClient
from quire.config.options import specs_of
from quire.config.server import ServerConfig

START_SECONDS = 600.0
STOP_SECONDS = 40.0
_POLL_SECONDS = 0.05


class ChildFailed(Exception):
    """The server did not come up; the message ends with the last lines of its log."""


class ServerProcess:
    """``async with ServerProcess(...) as server`` runs any OpenAI-compatible server for the length of the block.

    Inside, ``client`` talks to it and ``ready_seconds`` tells how long it took to start; afterwards ``status`` is its
    exit status.
    """

    def __init__(self, command: Sequence[str], port: int, environment: Mapping[str, str] | None = None) -> None:
        self.client = ApiClient(f"http://127.0.0.1:{port}")
        self.ready_seconds = 0.0
        self.status: int | None = None
        self._command = list(command)
        self._environment = {**os.environ, **(environment or {})}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __aexit__

    @property
    def pid(self) -> int:
        return self._process.pid

    def log(self) -> str:
        """What the server wrote so far."""
        return os.pread(self._log.fileno(), 1 << 20, 0).decode(errors="replace")

    async def __aenter__(self) -> Self:
        start = time.perf_counter()
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=self._environment,
            start_new_session=True,
        )
        try:
            await self._wait_ready(start + START_SECONDS)
        except BaseException:
            self._stop()
            raise
        self.ready_seconds = time.perf_counter() - start
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    async def _wait_ready(self, deadline: float) -> None:
        while not await self.client.ready():
            if self._process.poll() is not None or time.perf_counter() > deadline:
                tail = "\n".join(self.log().splitlines()[-12:])
                raise ChildFailed(f"The server did not start.\n{tail}")
            await asyncio.sleep(_POLL_SECONDS)

    def _stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self.status = self._process.wait()
        self._log.close()


def quire_server(flags: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> ServerProcess:
    """``quire serve`` with these flags on a free port of the loopback interface, open to this user's processes.

    Variables that set up a server of the user's own don't count; those of the engine do.
    """
    port = free_port()
    command = [sys.executable, "-m", "quire", "serve", "--host", "127.0.0.1", "--port", str(port), *flags]
    unset = {name: "" for spec in specs_of(ServerConfig) for name in spec.env_names}
    return ServerProcess(command, port, {**unset, **(environment or {})})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
