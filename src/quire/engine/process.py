"""The engine in a process of its own: messages over ZeroMQ, restarted when it dies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

from quire.config.engine import EngineConfig
from quire.engine.admission import Limits
from quire.engine.boot import DEFAULT_RUNNER
from quire.engine.client import Health
from quire.engine.errors import EngineDead
from quire.engine.messages import EngineReady, EngineRequest, EngineStats, ResetPrefixCache
from quire.engine.streams import Streams, TokenStream
from quire.engine.supervisor import RestartPolicy, Supervisor

_SHUTDOWN_S = 5.0


class ProcessEngine:
    """An ``EngineClient``. Requests in flight outlive their engine: a new one goes on where it stopped."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        runner: str = DEFAULT_RUNNER,
        policy: RestartPolicy | None = None,
        log_level: str = "info",
    ) -> None:
        """``runner``: ``module:function`` that builds the runner in the engine's process."""
        self._config = config
        self._runner = runner
        self._policy = policy or RestartPolicy()
        self._log_level = log_level
        self._supervisor: Supervisor | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, progress: Callable[[str], None] | None = None) -> EngineReady:
        if self._supervisor is not None:
            raise RuntimeError("The engine was started before.")
        self._supervisor = Supervisor(
            self._config, self._runner, self._policy, progress or (lambda _: None), self._log_level
        )
        self._task = asyncio.create_task(self._supervisor.run())
        try:
            return await asyncio.shield(self._supervisor.ready)
        except BaseException:
            await self.shutdown()
            raise

    def generate(self, request: EngineRequest) -> TokenStream:
        supervisor, streams = self._running()
        stream = streams.open(request)
        flight = streams.get(request.request_id)
        if flight is not None:
            supervisor.submit(flight)
        return stream

    async def abort(self, request_ids: Iterable[str]) -> None:
        supervisor, streams = self._running()
        ids = [request_id for request_id in request_ids if streams.get(request_id)]
        for request_id in ids:
            flight = streams.get(request_id)
            if flight is not None:
                streams.end(flight, "abort")
        if ids:
            supervisor.aborted(ids)

    async def reset_prefix_cache(self) -> None:
        self._running()[0].send(ResetPrefixCache())

    async def shutdown(self) -> None:
        supervisor, task = self._supervisor, self._task
        if supervisor is None or task is None:
            return
        await supervisor.close(_SHUTDOWN_S)
        done, _ = await asyncio.wait((task,), timeout=_SHUTDOWN_S)
        if not done:
            task.cancel()
            await asyncio.wait((task,))

    @property
    def limits(self) -> Limits:
        return self._running()[1].limits

    @property
    def stats(self) -> EngineStats:
        return self._supervisor.stats if self._supervisor else EngineStats()

    @property
    def health(self) -> Health:
        supervisor = self._supervisor
        streams = supervisor.streams if supervisor else None
        outstanding = len(streams) if streams is not None else 0
        return Health(
            started=supervisor is not None and supervisor.up,
            outstanding=outstanding,
            idle_s=time.monotonic() - streams.last_progress if streams is not None and outstanding else 0.0,
            restarts=supervisor.restarts if supervisor else 0,
            dead=supervisor.dead if supervisor else None,
        )

    @property
    def pid(self) -> int | None:
        """Of the engine's process, while there is one."""
        return self._supervisor.pid if self._supervisor else None

    def _running(self) -> tuple[Supervisor, Streams]:
        supervisor = self._supervisor
        if supervisor is None or (supervisor.streams is None and supervisor.dead is None):
            raise EngineDead("The engine has not been started.")
        if supervisor.dead is not None or supervisor.streams is None:
            raise EngineDead(supervisor.dead or "The engine could not start.")
        return supervisor, supervisor.streams
