"""What streamed and whole answers of completions and chat have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from typing import Generic, TypeVar

from fastapi import Request, Response

from quire.server.generation import Choice, Generation, Totals
from quire.server.openai.events import ChatChunk, Completion, encode, metrics_of, usage_of
from quire.server.openai.logprobs import LogprobShapes
from quire.server.openai.protocol import GenerationRequest
from quire.server.service import Service
from quire.server.sse import EventStream, event, while_connected
from quire.text.output import OutputDelta
from quire.version import __version__

FINGERPRINT = f"quire-{__version__}"
Body = TypeVar("Body", bound=GenerationRequest)


class Answer(ABC, Generic[Body]):
    """Renders one request's generation."""

    def __init__(self, service: Service, body: Body, generation: Generation, *, keep_silent: bool) -> None:
        """``keep_silent``: a delta without text is worth an event, for its logprobs or token ids."""
        self.service = service
        self.body = body
        self.generation = generation
        self.model = service.card.name
        self.created = int(generation.arrival)
        self.text = service.loaded.text  # kept: the server may stop taking requests while this one is answered
        self.shapes = LogprobShapes(self.text.names, bool(body.return_tokens_as_token_ids))
        self._keep_silent = keep_silent or bool(body.return_token_ids)

    @abstractmethod
    def chunk(self, choice: Choice, out: OutputDelta, *, first: bool) -> Completion | ChatChunk:
        """An event for what was added to one choice; ``first`` for the first such event of the choice."""

    @abstractmethod
    def closing(self) -> Completion | ChatChunk:
        """An event without choices, for the usage at the end."""

    def opening(self, choice: Choice) -> Completion | ChatChunk | None:
        """An event to send before the first of a choice."""
        return None

    @abstractmethod
    async def whole(self) -> bytes:
        """The unstreamed answer."""

    async def respond(self, request: Request, headers: dict[str, str]) -> Response:
        """The answer as the request wants it, streamed or whole. Raises ``ClientGone``."""
        headers["X-Request-Id"] = self.generation.public_id
        metrics, config = self.service.metrics, self.service.config
        if self.body.stream:
            return EventStream(self.events(), metrics.client_gone, headers, config.sse_keep_alive_interval)
        payload = await while_connected(request.receive, self.whole())
        return Response(payload, headers=headers, media_type="application/json")

    def totals(self) -> Totals:
        """What the answer reports of tokens and times."""
        return self.generation.totals()

    async def collect(self) -> list[OutputDelta]:
        """All that each choice became."""
        parts: list[list[OutputDelta]] = [[] for _ in self.generation.choices]
        with self.service.registered(self.generation):
            async for choice, out in self.generation.outputs():
                parts[choice.index].append(out)
        return [merge(p) for p in parts]

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The streamed answer: an event for each delta, or each ``stream_interval`` tokens."""
        generation, usage = self.generation, self.body.continuous_usage
        pace = _Pace(len(generation.choices), self._interval, self._keep_silent)
        opened: set[int] = set()
        shown: set[int] = set()
        with self.service.registered(generation):
            async for choice, delta in generation.outputs():
                if choice.index not in opened:
                    opened.add(choice.index)
                    if (opening := self.opening(choice)) is not None:
                        yield self._event(opening, usage=usage)
                if (out := pace.take(choice.index, delta)) is None:
                    continue
                chunk = self.chunk(choice, out, first=choice.index not in shown)
                shown.add(choice.index)
                if out.finish_reason is not None:
                    self._sign(chunk)
                yield self._event(chunk, usage=usage)
        if self.body.include_usage:
            yield self._event(self.closing(), usage=True, metrics=True)

    @property
    def _interval(self) -> int:
        return self.body.stream_interval or self.service.config.stream_interval

    def _sign(self, chunk: Completion | ChatChunk) -> None:
        """Facts that go with the last event of a choice."""
        chunk.system_fingerprint = FINGERPRINT
        if not self.body.include_usage and all(c.finished for c in self.generation.choices):
            chunk.metrics = metrics_of(self.totals())

    def _event(self, chunk: Completion | ChatChunk, *, usage: bool, metrics: bool = False) -> bytes:
        if usage or metrics:
            totals = self.totals()
            if usage:
                chunk.usage = usage_of(totals)
            if metrics:
                chunk.metrics = metrics_of(totals)
        return event(encode(chunk))


class _Pace:
    """Gathers deltas of each choice until there are ``interval`` tokens; the first and the last go out at once."""

    def __init__(self, choices: int, interval: int, keep_silent: bool) -> None:
        self._interval = interval
        self._keep_silent = keep_silent
        self._waiting: list[list[OutputDelta]] = [[] for _ in range(choices)]
        self._tokens = [interval] * choices  # since the last event

    def take(self, index: int, delta: OutputDelta) -> OutputDelta | None:
        """What is to go out now, if anything."""
        last = delta.finish_reason is not None
        if not delta.text and not self._keep_silent and not last:
            return None
        waiting = self._waiting[index]
        waiting.append(delta)
        self._tokens[index] += len(delta.token_ids)
        if self._tokens[index] < self._interval and not last:
            return None
        self._tokens[index] = 0
        self._waiting[index] = []
        return merge(waiting)


def merge(parts: list[OutputDelta]) -> OutputDelta:
    """Several deltas of one choice, in order, as one."""
    if len(parts) == 1:
        return parts[0]
    with_logprobs = any(p.logprobs is not None for p in parts)
    return OutputDelta(
        text="".join(p.text for p in parts),
        token_ids=[i for p in parts for i in p.token_ids],
        logprobs=[lp for p in parts for lp in p.logprobs or []] if with_logprobs else None,
        offsets=[o for p in parts for o in p.offsets],
        finish_reason=parts[-1].finish_reason if parts else None,
        stop_reason=parts[-1].stop_reason if parts else None,
    )
