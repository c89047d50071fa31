"""What happens when the engine's process dies or stalls: how often it is restarted, and which requests it gets again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec

from quire.engine.link import FromEngine, Link
from quire.engine.messages import DeltaBatch, EngineFailed, EngineReady, EngineRequest, EngineStats, Progress, Rejected
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


class Supervisor:
    """Keeps an engine's process alive and its requests going."""

    def __init__(
        self,
        make_link: Callable[[int], Link],
        policy: RestartPolicy,
        progress: Callable[[str], None],
    ) -> None:
        self._make_link = make_link
        self._policy = policy
        self._progress = progress
        self._restarts = Restarts(policy)
        self._link: Link | None = None
        self._failure: str | None = None
