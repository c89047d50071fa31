"""The HTTP front in a thread of the test's process, over any engine."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
from front_fakes import CONTEXT, VOCAB, FakeEngine, fake_text

from quire.config.server import ServerConfig
from quire.engine.messages import EngineReady
from quire.server.auth import Keys
from quire.server.http import HttpFront
from quire.server.service import ModelCard, Service

T = TypeVar("T")


class LiveFront:
    """``url`` of a front that listens; ``call`` runs a coroutine in its loop."""

    def __init__(self, engine: FakeEngine, config: ServerConfig, *, ready: bool = True) -> None:
        self.engine = engine
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._sock = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._sock.getsockname()[1]}"
        card = ModelCard(("fake",), frozenset({"fake", "alias"}))
        self.service = Service(config, card, Keys(config.api_key))
        self.front = HttpFront(self.service)
        if ready:
            self.open()
        self.call(self._listen)

    def open(self) -> None:
        facts = EngineReady(CONTEXT, VOCAB, 64, 100, 16, 0, 0, {"load": 0.1})
        self.service.open(self.engine, fake_text(), facts, {"load": 0.1})

    async def _listen(self) -> None:
        self.front.listen(self._sock)

    def call(self, work: Callable[[], Awaitable[T]]) -> T:
        async def run() -> T:
            return await work()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(30)

    def close(self) -> None:
        self.call(self.front.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextmanager
def live(engine: FakeEngine | None = None, *, ready: bool = True, **options: Any) -> Iterator[LiveFront]:
    front = LiveFront(engine or FakeEngine(), ServerConfig(**options), ready=ready)
    try:
        yield front
    finally:
        front.close()


http = httpx.Client(timeout=30, trust_env=False)  # one for all: making a client takes longer than most tests


def post(url: str, path: str, body: Any, **more: Any) -> httpx.Response:
    return http.post(url + path, json=body, **more)


def events(response: httpx.Response) -> list[Any]:
    """The data of each event of a stream; the last must be [DONE]."""
    data = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert data.pop() == "[DONE]"
    return [json.loads(d) for d in data]
