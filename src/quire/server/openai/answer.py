"""What streamed and whole answers of completions and chat have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from typing import Generic, TypeVar

from quire.server.generation import Choice, Generation
from quire.server.openai.events import ChatChunk, Completion, encode, metrics_of, usage_of
from quire.server.openai.logprobs import LogprobShapes
from quire.server.openai.protocol import GenerationRequest
from quire.server.service import Service
from quire.server.sse import event
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
        self.shapes = LogprobShapes(service.loaded.names, bool(body.return_tokens_as_token_ids))
        self._keep_silent = keep_silent or bool(body.return_token_ids)

    @abstractmethod
    def chunk(self, choice: Choice, out: OutputDelta) -> Completion | ChatChunk:
        """An event for what was added to one choice."""

    @abstractmethod
    def closing(self) -> Completion | ChatChunk:
        """An event without choices, for the usage at the end."""

    def opening(self, choice: Choice) -> Completion | ChatChunk | None:
        """An event to send before the first of a choice."""
        return None

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
        with self.service.registered(generation):
            async for choice, delta in generation.outputs():
                if not choice.opened:
                    choice.opened = True
                    if (opening := self.opening(choice)) is not None:
                        yield self._event(opening, usage=usage)
                if (out := pace.take(choice.index, delta)) is None:
                    continue
                chunk = self.chunk(choice, out)
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
            chunk.metrics = metrics_of(self.generation.totals())

    def _event(self, chunk: Completion | ChatChunk, *, usage: bool, metrics: bool = False) -> bytes:
        if usage or metrics:
            totals = self.generation.totals()
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
        self._started = [False] * choices

    def take(self, index: int, delta: OutputDelta) -> OutputDelta | None:
        """What is to go out now, if anything."""
        waiting = self._waiting[index]
        due = delta.finish_reason is not None or self._interval == 1 or not self._started[index]
        if not due:
            due = sum(len(w.token_ids) for w in waiting) + len(delta.token_ids) >= self._interval
        silent = not delta.text and not self._keep_silent and delta.finish_reason is None
        if not due or (silent and not any(w.text for w in waiting)):
            if not silent or self._keep_silent:
                waiting.append(delta)
            return None
        self._started[index] = True
        if not waiting:
            return delta
        self._waiting[index] = []
        return merge([*waiting, delta])


def merge(parts: list[OutputDelta]) -> OutputDelta:
    """Several deltas of one choice, in order, as one."""
    if len(parts) == 1:
        return parts[0]
    out = OutputDelta("".join(p.text for p in parts))
    for part in parts:
        out.token_ids = out.token_ids + part.token_ids
        out.offsets = out.offsets + part.offsets
        if part.logprobs is not None:
            out.logprobs = (out.logprobs or []) + part.logprobs
    if parts:
        out.finish_reason, out.stop_reason = parts[-1].finish_reason, parts[-1].stop_reason
    return out
