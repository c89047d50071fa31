"""The requests a client has in flight, and the streams that callers read their deltas from."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from quire.config.engine import EngineConfig
from quire.engine.admission import Limits, QueueBound, check_request
from quire.engine.errors import QueueFull
from quire.engine.messages import EngineRequest, FinishReason, Rejected, TokenDelta
from quire.params import ParameterError


class Flight:
    """One request in flight: what it has generated, and what its caller has not read yet."""

    def __init__(self, request: EngineRequest) -> None:
        self.request = request
        self.request_id = request.request_id
        self.token_ids = list(request.output_token_ids)
        self.crashes = 0  # engines that died while this request ran
        self.over = False
        self.unread: deque[TokenDelta] = deque()
        self.error: Exception | None = None
        self.waiter: asyncio.Future[None] | None = None
        self._first: TokenDelta | None = None

    def put(self, delta: TokenDelta) -> None:
        self.token_ids += delta.token_ids
        if delta.first_token_time is not None:
            # An engine that took the request over after a restart knows only its own part of it.
            first = self._first = self._first or delta
            delta.num_cached_tokens = first.num_cached_tokens
            delta.scheduled_time = first.scheduled_time
            delta.first_token_time = first.first_token_time
        self.unread.append(delta)
        self.wake()

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class TokenStream:
    """Async iterator over one request's deltas; the last one has ``finish_reason``."""

    def __init__(self, flight: Flight, on_close: Callable[[str], None]) -> None:
        self._flight = flight
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()

    def __aiter__(self) -> TokenStream:
        return self

    async def __anext__(self) -> TokenDelta:
        flight = self._flight
        while not flight.unread:
            if flight.error is not None:
                raise flight.error
            if flight.over:
                raise StopAsyncIteration
            flight.waiter = self._loop.create_future()
            try:
                await flight.waiter
            except asyncio.CancelledError:
                self.close()
                raise
            finally:
                flight.waiter = None
        return flight.unread.popleft()

    def close(self) -> None:
        """Abort the request if it still runs; what was not read is dropped."""
        _close(self._flight, self._on_close)

    async def aclose(self) -> None:
        self.close()

    def __del__(self) -> None:
        # The collector may run in any thread.
        if not self._flight.over and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_close, self._flight, self._on_close)


def _close(flight: Flight, on_close: Callable[[str], None]) -> None:
    flight.unread.clear()
    if not flight.over:
        flight.over = True
        flight.wake()
        on_close(flight.request_id)


class Streams:
    """Flights by request id, bounded as the engine's queue is, so that a full one is known without asking it."""

    def __init__(self, config: EngineConfig, slots: int, limits: Limits, on_close: Callable[[str], None]) -> None:
        self._slots = slots
        self.limits = limits
        self._bound = QueueBound(config.max_num_queued_reqs, config.max_num_queued_tokens)
        self._flights: dict[str, Flight] = {}
        self._unstarted_tokens = 0  # prompt tokens of requests without a delta
        self._on_close = on_close
        self.last_progress = time.monotonic()

    def __len__(self) -> int:
        return len(self._flights)

    def __iter__(self) -> Iterator[Flight]:
        return iter(list(self._flights.values()))

    def get(self, request_id: str) -> Flight | None:
        return self._flights.get(request_id)

    def open(self, request: EngineRequest) -> TokenStream:
        """A stream for a request about to be sent. Raises ``ParameterError`` or ``QueueFull``."""
        check_request(request, self.limits)
        if request.request_id in self._flights:
            raise ParameterError("request_id", "A request with this id is running.")
        tokens = len(request.prompt_token_ids)
        free_slots = self._slots - len(self._flights)
        self._bound.check(max(-free_slots, 0), self._unstarted_tokens, max(free_slots, 0), tokens)
        if not self._flights:
            self.last_progress = time.monotonic()
        flight = self._flights[request.request_id] = Flight(request)
        self._unstarted_tokens += tokens
        return TokenStream(flight, self._closed)

    def deliver(self, deltas: Iterable[TokenDelta]) -> None:
        for delta in deltas:
            flight = self._flights.get(delta.request_id)
            if flight is None:
                continue  # closed by its caller meanwhile
            if not flight.token_ids and delta.token_ids:
                self._unstarted_tokens -= len(flight.request.prompt_token_ids)
            flight.put(delta)
            if delta.finish_reason is not None:
                self._land(flight)
                flight.wake()

    def reject(self, rejected: Rejected) -> None:
        self.fail(rejected.request_id, QueueFull(rejected.message, rejected.retry_after))

    def fail(self, request_id: str, error: Exception) -> None:
        """End a stream with an exception."""
        flight = self._flights.get(request_id)
        if flight is not None:
            flight.error = error
            self._land(flight)
            flight.wake()

    def end(self, flight: Flight, reason: FinishReason, error: str | None = None) -> None:
        """End a stream with a delta that the engine did not send."""
        self.deliver([TokenDelta(flight.request_id, finish_reason=reason, error=error)])

    def end_all(self, reason: FinishReason, error: str | None = None) -> None:
        for flight in self:
            self.end(flight, reason, error)

    def _closed(self, request_id: str) -> None:
        flight = self._flights.get(request_id)
        if flight is not None:
            self._land(flight)
            self._on_close(request_id)

    def _land(self, flight: Flight) -> None:
        flight.over = True
        if not flight.token_ids:
            self._unstarted_tokens -= len(flight.request.prompt_token_ids)
        del self._flights[flight.request_id]
        self._bound.finished()
