"""One life of the engine's process, and the two ZeroMQ sockets to it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

from quire.config.engine import EngineConfig
from quire.engine.boot import Boot
from quire.engine.messages import ClientMessage, DeltaBatch, EngineMessage

FromEngine = EngineMessage | DeltaBatch

_STDERR = 2
_MAX_SOCKET_PATH = 100  # bytes; the system's limit is 107 on Linux, 103 on macOS
_DRAIN_S = 0.2  # for what the process had sent before it ended


class Link:
    """A child process and the way to it. Each life has its own sockets: no message outlives the process it was for."""

    def __init__(self, config: EngineConfig, runner: str, log_level: str) -> None:
        self._directory: Path | None = _private_directory()
        self._context = zmq.asyncio.Context()
        inbox, outbox = (f"ipc://{self._directory}/{name}" for name in ("in", "out"))
        # The way in is a plain socket: with no high-water mark sending never blocks, so callers need not wait.
        self._to_engine: zmq.Socket[bytes] = zmq.Context.shadow(self._context.underlying).socket(zmq.PUSH)
        self._from_engine = self._context.socket(zmq.PULL)
        for socket in (self._to_engine, self._from_engine):
            socket.set_hwm(0)
            socket.linger = 0
        self._to_engine.bind(inbox)
        self._from_engine.bind(outbox)
        self._boot = Boot(config, runner, inbox, outbox, os.getpid(), time.time(), log_level)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(FromEngine)
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def spawn(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "quire.engine.main",
            stdin=asyncio.subprocess.PIPE,
            stdout=_STDERR,  # stdout belongs to the front
            start_new_session=True,  # so does a terminal's Ctrl-C: here it would interrupt the first imports
        )
        stdin = self._process.stdin
        if stdin is not None:
            stdin.write(msgspec.json.encode(self._boot) + b"\n")

    def send(self, message: ClientMessage) -> None:
        with contextlib.suppress(zmq.ZMQError):  # closed: the supervisor sends it again to the next life
            self._to_engine.send(self._encoder.encode(message), zmq.NOBLOCK)

    async def listen(self, on_message: Callable[[FromEngine], None]) -> int:
        """Hand over messages until the process ends; returns its exit code."""
        if self._process is None:
            raise RuntimeError("listen() before spawn().")
        ended = asyncio.ensure_future(self._process.wait())
        reader = asyncio.ensure_future(self._read(on_message))
        try:
            await asyncio.wait((ended, reader), return_when=asyncio.FIRST_COMPLETED)
            if reader.done():
                reader.result()
            code = await ended
            await asyncio.wait((reader,), timeout=_DRAIN_S)
            return code
        finally:
            ended.cancel()
            reader.cancel()
            await asyncio.gather(ended, reader, return_exceptions=True)

    async def _read(self, on_message: Callable[[FromEngine], None]) -> None:
        while True:
            frame = await self._from_engine.recv()
            # Both sockets are connected by now: without their files nobody else can come in, and none is left behind.
            self._remove_directory()
            on_message(self._decoder.decode(frame))

    def dump_stacks(self) -> None:
        """The process writes the stacks of its threads to stderr, if it still can."""
        self._signal(signal.SIGUSR1)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    async def wait(self, timeout: float) -> bool:
        """Whether the process ended within ``timeout`` seconds."""
        if self._process is None:
            return True
        try:
            await asyncio.wait_for(self._process.wait(), timeout)
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Kill what is left of the process and remove the sockets."""
        self.kill()
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        self._to_engine.close(linger=0)
        self._from_engine.close(linger=0)
        self._context.term()
        self._remove_directory()

    def _remove_directory(self) -> None:
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)


def _private_directory() -> Path:
    """A new directory that only this user can enter, with a path short enough for a Unix socket."""
    parent = tempfile.gettempdir()
    if len(parent) > _MAX_SOCKET_PATH - len("/quire-xxxxxxxx/out"):
        parent = "/tmp"
    return Path(tempfile.mkdtemp(prefix="quire-", dir=parent))
