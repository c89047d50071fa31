"""Start, readiness, drain and end of a server."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from quire.config.engine import EngineConfig
from quire.config.options import ConfigError
from quire.config.server import ServerConfig
from quire.engine.errors import EngineDead
from quire.server import sockets
from quire.server.startup import Ledger, process_age
from quire.version import __version__
from quire.weights.errors import WeightsError

if TYPE_CHECKING:
    from quire.engine.messages import EngineReady
    from quire.engine.process import ProcessEngine
    from quire.server.http import HttpFront
    from quire.text.front import TextFront

logger = logging.getLogger("quire.server")
_TICK = 0.05
_HEAD_START_SECONDS = 1.0
_SPAWN_SECONDS = 0.02  # for the engine's process to be on its way
_LAST_WORDS_SECONDS = 2.0  # for error events to reach their clients
_STATS_SECONDS = 10.0
T = TypeVar("T")


def run_server(engine: EngineConfig, server: ServerConfig) -> int:
    """Serve until a signal ends it; returns the exit status. Raises ``ConfigError`` for an address it can't have."""
    ledger = Ledger(process_age())
    sockets.check_exposure(server)
    sockets.check_tls(server)
    template = read_template(server.chat_template)
    configure_logging(server.log_level)
    sock = sockets.bind(server)
    lifecycle = Lifecycle(engine, server, template, sock, ledger)
    try:
        import uvloop
    except ImportError:
        return asyncio.run(lifecycle.run())
    return uvloop.run(lifecycle.run())


def configure_logging(level: str) -> None:
    """Plain lines on standard error: a start-up summary, changes of state, errors."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=level.upper(), stream=sys.stderr)
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)


class Lifecycle:
    """One server, from its bound socket to its end."""

    def __init__(
        self, engine: EngineConfig, server: ServerConfig, template: str | None, sock: socket.socket, ledger: Ledger
    ) -> None:
        """``template``: the text of a chat template to use instead of the model's."""
        self._engine_config = engine
        self._template = template
        self._config = server
        self._sock = sock
        self._ledger = ledger
        self._stop = asyncio.Event()
        self._at_once = asyncio.Event()
        self._engine_begun = asyncio.Event()
        self._phase = "starting"
        self._client: ProcessEngine | None = None
        self._front: HttpFront | None = None

    async def run(self) -> int:
        """Start, serve until a signal, drain, end. Returns the exit status."""
        logger.info("Quire %s starts %s; GET /ready tells how far it is.", __version__, self._engine_config.model)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        stopping = asyncio.create_task(self._stop.wait())
        starting = asyncio.create_task(self._start())
        try:
            await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                front = starting.result()
                await self._log_stats_until(stopping, front)
                await self._drain(front)
            return 0
        except (EngineDead, WeightsError) as error:
            logger.error("%s", error)
            return 1
        finally:
            await _cancelled(starting, stopping)
            if self._front is not None:
                await self._front.close()
            if self._client is not None:
                await self._client.shutdown()
            if self._config.uds:
                Path(self._config.uds).unlink(missing_ok=True)

    def _on_signal(self) -> None:
        (self._at_once if self._stop.is_set() else self._stop).set()

    async def _start(self) -> HttpFront:
        """What can go on at once does: the engine's process, the tokenizer, the HTTP front. One that fails ends all."""
        path = asyncio.create_task(in_thread(self._locate))
        engine = asyncio.create_task(self._start_engine(path))
        text = asyncio.create_task(self._open_text(path))
        http = asyncio.create_task(self._open_front())
        try:
            # Not ``gather``: that would cancel them too when this is cancelled, and an engine must end undisturbed.
            done, _ = await asyncio.wait((http, engine, text), return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
            front, (client, ready), text_front = http.result(), engine.result(), text.result()
        finally:
            await _cancelled(path, engine, text, http)
        phases = self._ledger.close(ready.phases)
        front.service.open(client, text_front, ready, phases)
        logger.info("Start-up: %s.", ", ".join(f"{name} {seconds:.2f} s" for name, seconds in phases.items()))
        name, total = front.service.card.name, sum(phases.values())
        where = sockets.address(self._config, self._sock)
        logger.info("Quire %s ready in %.1f s: %s at %s", __version__, total, name, where)
        return front

    def _enter(self, phase: str) -> None:
        """Note a phase of the start; an engine that is restarted later goes through its phases unnoticed."""
        self._phase = f"starting ({phase})"
        if self._front is not None and not self._front.service.opened:
            self._front.service.phase = self._phase

    def _locate(self) -> Path:
        from quire.weights.progress import progress_bar
        from quire.weights.sources import locate

        with progress_bar() as bar:

            def report(label: str, done: int, total: int) -> None:
                bar(label, done, total)
                self._enter(f"fetching the model, {100 * done // max(total, 1)}%")

            return locate(self._engine_config, report)

    async def _start_engine(self, path: asyncio.Task[Path]) -> tuple[ProcessEngine, EngineReady]:
        from quire.engine.process import ProcessEngine

        config = dataclasses.replace(self._engine_config, model=str(await path))
        client = self._client = ProcessEngine(config, log_level=self._config.log_level)
        self._ledger.engine_begins()
        starting = asyncio.create_task(client.start(self._enter))
        try:
            await asyncio.sleep(_SPAWN_SECONDS)
            self._engine_begun.set()
            return client, await asyncio.shield(starting)
        finally:
            if not starting.done():
                await client.shutdown()  # which ends the start in its own way
            await _cancelled(starting)

    async def _open_text(self, path: asyncio.Task[Path]) -> TextFront:
        found = await path
        await self._engine_begun.wait()

        def work() -> TextFront:
            from quire.model.support import open_supported

            checkpoint = open_supported(self._engine_config, found)  # before all else is imported: to refuse at once
            from quire.text.front import open_front

            return open_front(self._engine_config, checkpoint, self._template)

        return await in_thread(work)

    async def _open_front(self) -> HttpFront:
        # Importing the front takes this process a while: the engine's should be on its way by then.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._engine_begun.wait(), _HEAD_START_SECONDS)
        front = self._front = await in_thread(self._make_front)
        front.service.phase = self._phase
        front.listen(self._sock)
        return front

    def _make_front(self) -> HttpFront:
        from quire.server.auth import Keys
        from quire.server.http import HttpFront
        from quire.server.service import ModelCard, Service

        card = ModelCard.of(self._engine_config.model, self._config.served_model_name)
        priorities = self._engine_config.scheduling_policy == "priority"
        return HttpFront(Service(self._config, card, Keys(self._config.api_key), priorities=priorities))

    async def _log_stats_until(self, stopping: asyncio.Task[bool], front: HttpFront) -> None:
        """A line of throughput every while, as long as there is any."""
        log = not self._config.disable_log_stats
        while not stopping.done():
            before = _generated(front)
            await asyncio.wait((stopping,), timeout=_STATS_SECONDS)
            stats = front.service.stats
            made = _generated(front) - before
            if log and made and stats is not None and stats.running:
                logger.info(
                    "%.1f tokens/s generated, %d running, %d waiting, %.0f%% of pages used",
                    made / _STATS_SECONDS, stats.running, stats.waiting, 100 * stats.kv_cache_usage,
                )  # fmt: skip

    async def _drain(self, front: HttpFront) -> None:
        """Let requests in flight finish, within bounds; a second signal ends them now."""
        service, patience = front.service, self._config.shutdown_timeout
        service.phase = "draining"
        if service.in_flight:
            logger.info("Stopping: waiting up to %g s for %d requests.", patience, service.in_flight)
        deadline = time.monotonic() + patience
        while service.in_flight and time.monotonic() < deadline and not self._at_once.is_set():
            await asyncio.sleep(_TICK)
        if service.in_flight:
            await service.fail_all("The server is shutting down.")
            deadline = time.monotonic() + _LAST_WORDS_SECONDS
            while service.in_flight and time.monotonic() < deadline:
                await asyncio.sleep(_TICK)
        logger.info("Stopped.")


def _generated(front: HttpFront) -> int:
    stats = front.service.stats
    return stats.generation_tokens if stats is not None else 0


def read_template(file: str | None) -> str | None:
    """The text given by ``--chat-template``. Raises ``ConfigError``."""
    if file is None:
        return None
    try:
        return Path(file).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        raise ConfigError("chat_template", f"--chat-template: {file} can't be read as text.") from None


async def in_thread(work: Callable[[], T]) -> T:
    """``work()`` in a daemon thread, which an exit doesn't wait for: it may be in the middle of a download."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        try:
            outcome: tuple[T | None, BaseException | None] = (work(), None)
        except BaseException as error:
            outcome = (None, error)
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits for this any more
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, daemon=True).start()
    return await future


async def _cancelled(*tasks: asyncio.Task[object]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
