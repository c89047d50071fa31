"""The engine in the caller's process: driven step by step, or by a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import Literal, TypeVar

from quire.config.engine import EngineConfig
from quire.engine.admission import Limits
from quire.engine.boot import DEFAULT_RUNNER, BuildRunner, runner_factory
from quire.engine.client import Health
from quire.engine.core import EngineCore
from quire.engine.errors import EngineDead
from quire.engine.messages import (
    Abort,
    ClientMessage,
    DeltaBatch,
    EngineReady,
    EngineRequest,
    EngineStats,
    Rejected,
    ResetPrefixCache,
    Shutdown,
    TokenDelta,
)
from quire.engine.plan import Runner
from quire.engine.service import EngineService
from quire.engine.streams import Streams, TokenStream

log = logging.getLogger("quire.engine")

_T = TypeVar("_T")


class InlineEngine:
    """Synchronous driver: ``add`` requests, then ``step`` until none is left. Its queue is unbounded."""

    def __init__(self, runner: Runner, config: EngineConfig) -> None:
        self.core = EngineCore(runner, config, bounded=False)

    @property
    def has_work(self) -> bool:
        return self.core.has_work

    @property
    def max_model_len(self) -> int:
        return self.core.limits.max_model_len

    def add(self, request: EngineRequest) -> None:
        """Queue a request. Raises ``ParameterError`` when it can never run."""
        self.core.add(request)

    def step(self) -> list[TokenDelta]:
        """Run one step (blocks for its time)."""
        return self.core.step()

    def run(self) -> Iterator[TokenDelta]:
        """Step until all requests are done. Closing the iterator early leaves them queued: ``abort`` what is left."""
        while self.core.has_work:
            yield from self.core.step()

    def abort(self, request_ids: Iterable[str]) -> None:
        self.core.abort(request_ids)

    def reset_prefix_cache(self) -> None:
        self.core.reset_prefix_cache()

    def stats(self) -> EngineStats:
        return self.core.stats()


class ThreadEngine:
    """An ``EngineClient`` whose engine runs in a thread of this process, for embedding. It cannot be restarted."""

    def __init__(self, config: EngineConfig, *, build: BuildRunner | None = None) -> None:
        self._config = config
        self._build = build
        self._inbox: SimpleQueue[ClientMessage] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="quire-engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready: asyncio.Future[EngineReady] | None = None
        self._progress: Callable[[str], None] = lambda _: None
        self._streams: Streams | None = None
        self._stats = EngineStats()
        self._dead: str | None = None

    async def start(self, progress: Callable[[str], None] | None = None) -> EngineReady:
        if self._loop is not None:
            raise RuntimeError("The engine was started before.")
        self._loop = asyncio.get_running_loop()
        self._ready = self._loop.create_future()
        self._progress = progress or self._progress
        self._thread.start()
        ready = await self._ready
        limits = Limits(ready.max_model_len, ready.vocab_size, self._config.max_logprobs)
        self._streams = Streams(
            self._config, ready.slots, limits, lambda request_id: self._inbox.put(Abort([request_id]))
        )
        return ready

    def generate(self, request: EngineRequest) -> TokenStream:
        stream = self._running().open(request)
        self._inbox.put(request)
        return stream

    async def abort(self, request_ids: Iterable[str]) -> None:
        streams = self._running()
        ids = list(request_ids)
        self._inbox.put(Abort(ids))
        for request_id in ids:
            flight = streams.get(request_id)
            if flight is not None:
                streams.end(flight, "abort")

    async def reset_prefix_cache(self) -> None:
        self._running()
        self._inbox.put(ResetPrefixCache())

    async def shutdown(self) -> None:
        if self._loop is None:
            return
        self._inbox.put(Shutdown())
        while self._thread.is_alive():
            await asyncio.sleep(0.01)
        self._die("The engine was shut down.", "abort")

    @property
    def limits(self) -> Limits:
        return self._running().limits

    @property
    def stats(self) -> EngineStats:
        return self._stats

    @property
    def health(self) -> Health:
        streams = self._streams
        outstanding = len(streams) if streams is not None else 0
        return Health(
            started=streams is not None,
            outstanding=outstanding,
            idle_s=time.monotonic() - streams.last_progress if streams is not None and outstanding else 0.0,
            restarts=0,
            dead=self._dead,
        )

    def _running(self) -> Streams:
        if self._dead is not None or self._streams is None:
            raise EngineDead(self._dead or "The engine has not been started.")
        return self._streams

    # In the engine's thread

    def _run(self) -> None:
        try:
            build = self._build or runner_factory(DEFAULT_RUNNER)
            service = EngineService(build(self._config, lambda phase: self._tell(self._progress, phase)), self._config)
            self._tell(self._started, service.ready)
            self._serve(service)
        except Exception as error:
            log.exception("The engine ended.")
            self._tell(self._die, str(error) or type(error).__name__)

    def _serve(self, service: EngineService) -> None:
        while True:
            while not (service.core.has_work and self._inbox.empty()):
                message = self._inbox.get()
                if isinstance(message, Shutdown):
                    return
                if (answer := service.handle(message)) is not None:
                    self._tell(self._take, [answer])
            self._tell(self._take, service.step())

    def _tell(self, function: Callable[[_T], None], value: _T) -> None:
        """Call ``function`` in the event loop, if that still runs."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, value)

    # In the event loop

    def _started(self, ready: EngineReady) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(ready)

    def _take(self, messages: Iterable[DeltaBatch | Rejected | EngineStats]) -> None:
        streams = self._streams
        if streams is None:
            return
        for message in messages:
            if isinstance(message, DeltaBatch):
                streams.deliver(message.deltas)
            elif isinstance(message, Rejected):
                streams.reject(message)
            elif isinstance(message, EngineStats):
                self._stats = message
                streams.last_progress = time.monotonic()

    def _die(self, why: str, reason: Literal["abort", "error"] = "error") -> None:
        self._dead = self._dead or why
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(EngineDead(why))
        if self._streams is not None:
            self._streams.end_all(reason, why if reason == "error" else None)
