"""What happens when the engine's process dies or stalls: when it is restarted, and which requests it gets again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from quire.config.engine import EngineConfig
from quire.engine.admission import Limits
from quire.engine.errors import EngineDead
from quire.engine.link import FromEngine, Link
from quire.engine.messages import (
    Abort,
    ClientMessage,
    DeltaBatch,
    EngineFailed,
    EngineReady,
    EngineRequest,
    EngineStats,
    Progress,
    Rejected,
    Shutdown,
)
from quire.engine.streams import Flight, Streams

log = logging.getLogger("quire.engine")

_DUMP_S = 1.0  # for the process to write its stacks


@dataclass(frozen=True)
class RestartPolicy:
    """At most ``tries`` restarts within ``window_s``; the first at once, then after 1, 2, 4, ... seconds."""

    tries: int = 5
    window_s: float = 300.0
    stall_s: float = 20.0  # without a finished step while work is outstanding: kill and restart
    max_crashes: int = 2  # a request that ran while more engines than this died is given up


class Restarts:
    """Counts restarts against the policy."""

    def __init__(self, policy: RestartPolicy, clock: Callable[[], float] = time.monotonic) -> None:
        self._policy = policy
        self._clock = clock
        self._recent: deque[float] = deque()
        self.total = 0

    def next_delay(self) -> float | None:
        """Seconds to wait before another restart; ``None``: no more."""
        now = self._clock()
        while self._recent and now - self._recent[0] > self._policy.window_s:
            self._recent.popleft()
        if len(self._recent) >= self._policy.tries:
            return None
        delay = 2.0 ** (len(self._recent) - 1) if self._recent else 0.0
        self._recent.append(now)
        self.total += 1
        return delay


class Quarantine:
    """Which requests a restarted engine gets, and when.

    Requests that had begun to answer go on at once. The others may hold what killed the engine, so they are sent one
    at a time, each when the one before has shown a token: if the engine dies again, the guilty one is known.
    """

    def __init__(self, streams: Streams, send: Callable[[EngineRequest], None], max_crashes: int) -> None:
        self._streams = streams
        self._send = send
        self._max_crashes = max_crashes
        self._held: deque[Flight] = deque()
        self._on_trial: Flight | None = None

    def submit(self, flight: Flight) -> None:
        """Send a new request, or hold it while others are on trial."""
        if self._on_trial is not None:
            self._held.append(flight)
        else:
            self._send(flight.request)

    def crashed(self) -> None:
        """The engine died: give up the guilty."""
        if self._on_trial is not None and not self._on_trial.over:
            self._streams.end(self._on_trial, "error", "The engine failed on this request.")
        for flight in self._streams:
            if flight.token_ids:
                flight.crashes += 1
                if flight.crashes > self._max_crashes:
                    self._streams.end(flight, "error", "The engine failed several times while this request ran.")
        self._on_trial = None
        self._held.clear()

    def resubmit(self) -> None:
        """A new engine is ready for what the old one left."""
        for flight in self._streams:
            if flight.token_ids:
                self._send(msgspec.structs.replace(flight.request, output_token_ids=flight.token_ids.copy()))
            else:
                self._held.append(flight)
        self.advance()

    def advance(self) -> None:
        """Send the next held request once the one on trial has answered or ended."""
        while self._on_trial is None or self._on_trial.over or self._on_trial.token_ids:
            if not self._held:
                self._on_trial = None
                return
            self._on_trial = self._held.popleft()
            if not self._on_trial.over:
                self._send(self._on_trial.request)


_COUNTERS = (
    "steps",
    "prompt_tokens",
    "computed_tokens",
    "cached_tokens",
    "generation_tokens",
    "preemptions",
    "rejected",
)


def added(before: EngineStats, now: EngineStats) -> EngineStats:
    """``now`` with the counters of engines ``before`` it added."""
    counters = {name: getattr(before, name) + getattr(now, name) for name in _COUNTERS}
    finished = Counter(before.finished)
    finished.update(now.finished)
    return msgspec.structs.replace(now, **counters, finished=dict(finished))


class Supervisor:
    """Keeps an engine's process alive and its requests going."""

    def __init__(
        self,
        config: EngineConfig,
        runner: str,
        policy: RestartPolicy,
        progress: Callable[[str], None],
        log_level: str,
    ) -> None:
        self.ready: asyncio.Future[EngineReady] = asyncio.get_running_loop().create_future()
        self.streams: Streams | None = None
        self.stats = EngineStats()  # counters go on over restarts
        self.up = False
        self.dead: str | None = None
        self._config = config
        self._runner = runner
        self._policy = policy
        self._progress = progress
        self._log_level = log_level
        self._restarts = Restarts(policy)
        self._quarantine: Quarantine | None = None
        self._link: Link | None = None
        self._failure: str | None = None  # what the engine said before it ended
        self._closing = False
        self._before = EngineStats()  # of the engines that ended

    @property
    def restarts(self) -> int:
        return self._restarts.total

    @property
    def pid(self) -> int | None:
        return self._link.pid if self._link else None

    def send(self, message: ClientMessage) -> None:
        """To the engine; while there is none, nowhere: it will be told all that is in flight."""
        if self._link is not None and self.up:
            self._link.send(message)

    def submit(self, flight: Flight) -> None:
        """Run a request that ``streams`` has opened."""
        if self.up and self._quarantine is not None:
            self._quarantine.submit(flight)

    def aborted(self, request_ids: list[str]) -> None:
        self.send(Abort(request_ids))
        self._advance()

    async def run(self) -> None:
        """Start the engine and restart it until ``close``, or until it is past help."""
        try:
            while (delay := await self._live()) is not None:
                log.warning("The engine ended: %s Restarting it.", self._failure)
                await asyncio.sleep(delay)
        except Exception:
            log.exception("The engine's supervisor failed.")
            self._give_up("The engine's supervisor failed.")

    async def close(self, timeout: float) -> None:
        """Ask the engine to end; kill it after ``timeout`` seconds."""
        self._closing = True
        link = self._link
        if link is not None:
            if self.up:
                self.send(Shutdown())
            else:
                link.kill()
            if not await link.wait(timeout):
                link.kill()
                await link.wait(timeout)

    async def _live(self) -> float | None:
        """One life of the engine; returns the seconds until the next, ``None`` if there is none."""
        self._failure = None
        self._link = link = Link(self._config, self._runner, self._log_level)
        watchdog: asyncio.Task[None] | None = None
        try:
            await link.spawn()
            watchdog = asyncio.create_task(self._watch(link))
            code = await link.listen(self._take)
        finally:
            if watchdog is not None:
                watchdog.cancel()
            self.up = False
            self._before = self.stats = added(self.stats, EngineStats())
            link.close()
            self._link = None
        if self._closing:
            self._give_up("The engine was shut down.")
            return None
        self._failure = self._failure or f"Its process ended with code {code}."
        if self._quarantine is not None:
            self._quarantine.crashed()
        if not self.ready.done():
            self._give_up(self._failure)
            return None
        delay = self._restarts.next_delay()
        if delay is None:
            self._give_up(f"The engine ended and was not restarted. {self._failure}")
        return delay

    def _give_up(self, why: str) -> None:
        self.dead = why
        if not self.ready.done():
            self.ready.set_exception(EngineDead(why))
        if self.streams is not None:
            self.streams.end_all("abort" if self._closing else "error", None if self._closing else why)

    async def _watch(self, link: Link) -> None:
        """Kill an engine that makes no progress."""
        limit = self._policy.stall_s
        nap = limit / 20
        while True:
            before = time.monotonic()
            await asyncio.sleep(nap)
            streams = self.streams
            if streams is not None and time.monotonic() - before > 2 * nap + 1:
                streams.last_progress = time.monotonic()  # it is we who stood still (Ctrl-Z, a blocked loop)
            if self.up and streams and time.monotonic() - streams.last_progress > limit:
                self._failure = f"It finished no step for {limit:g} s with {len(streams)} requests in flight."
                log.error("The engine stalls: %s Its stacks follow.", self._failure)
                link.dump_stacks()
                await asyncio.sleep(_DUMP_S)
                link.kill()
                return

    def _take(self, message: FromEngine) -> None:
        streams = self.streams
        match message:
            case DeltaBatch() if streams is not None:
                streams.last_progress = time.monotonic()
                streams.deliver(message.deltas)
                self._advance()
            case EngineStats() if streams is not None:
                streams.last_progress = time.monotonic()
                self.stats = added(self._before, message)
            case Rejected() if streams is not None:
                streams.reject(message)
                self._advance()
            case EngineReady():
                self._begin(message)
            case Progress():
                self._progress(message.phase)
            case EngineFailed():
                self._failure = message.message
            case _:
                log.warning("An unexpected message from the engine was dropped.")

    def _advance(self) -> None:
        if self._quarantine is not None:
            self._quarantine.advance()

    def _begin(self, ready: EngineReady) -> None:
        self.up = True
        if self.streams is None:
            limits = Limits(ready.max_model_len, ready.vocab_size, self._config.max_logprobs)
            self.streams = Streams(self._config, ready.slots, limits, lambda request_id: self.aborted([request_id]))
            self._quarantine = Quarantine(self.streams, self.send, self._policy.max_crashes)
        if not self.ready.done():
            self.ready.set_result(ready)
        self.streams.last_progress = time.monotonic()
        if self._quarantine is not None:
            self._quarantine.resubmit()
