"""The completions of one HTTP request on their way through the engine."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from quire.engine.client import EngineClient
from quire.engine.errors import QueueFull
from quire.engine.messages import EngineRequest, FinishReason, TokenDelta, TokenLogprobs
from quire.params import ParameterError
from quire.server.errors import ApiError, internal_error
from quire.server.metrics import Metrics, Timings
from quire.text.output import CompletionAssembler, OutputDelta, TextStream
from quire.text.prompt import EncodedPrompt

logger = logging.getLogger("quire.server")
_serial = itertools.count(1)


@dataclass(slots=True)
class Choice:
    """One completion in the making. Times are seconds since the epoch."""

    index: int
    prompt: EncodedPrompt
    first_of_prompt: bool
    request: EngineRequest
    assembler: CompletionAssembler
    cached_tokens: int = 0
    scheduled: float | None = None
    first_token: float | None = None
    last_token: float = 0.0
    prompt_logprobs: list[TokenLogprobs | None] | None = None

    @property
    def finished(self) -> bool:
        return self.assembler.finished


@dataclass(slots=True)
class Totals:
    """Tokens and times over all choices."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    arrival: float
    scheduled: float | None
    first_token: float | None
    finished: float


Item = tuple[Choice, OutputDelta]


@dataclass(eq=False)
class Generation:
    """Sends its choices to the engine and yields what they add; aborts what is unfinished when closed."""

    public_id: str
    tenant: str
    choices: list[Choice]
    engine: EngineClient
    metrics: Metrics
    arrival: float
    _failure: ApiError | None = None
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def outputs(self) -> AsyncGenerator[Item, None]:
        """Each choice with what was added to it. Raises what ``EngineClient.generate`` raises, and ``ApiError``."""
        source = self._one(self.choices[0]) if len(self.choices) == 1 else self._merged()
        reason: FinishReason | None = "abort"
        try:
            async with aclosing(source):
                async for item in source:
                    yield item
        except (QueueFull, ParameterError):
            reason = None  # it never was in the engine
            raise
        except Exception:
            reason = "error"
            raise
        finally:
            await self._close(reason)

    async def cancel(self) -> None:
        """End every unfinished choice with finish reason "abort"."""
        await self.engine.abort([c.request.request_id for c in self.choices if not c.finished])

    async def fail(self, error: ApiError) -> None:
        """End it with an error."""
        self._failure = error
        await self.cancel()

    def totals(self) -> Totals:
        firsts = [c for c in self.choices if c.first_of_prompt]
        scheduled = [c.scheduled for c in self.choices if c.scheduled is not None]
        first_tokens = [c.first_token for c in self.choices if c.first_token is not None]
        return Totals(
            prompt_tokens=sum(len(c.prompt.token_ids) for c in firsts),
            completion_tokens=sum(c.assembler.num_tokens for c in self.choices),
            cached_tokens=sum(c.cached_tokens for c in firsts),
            arrival=self.arrival,
            scheduled=min(scheduled, default=None),
            first_token=min(first_tokens, default=None),
            finished=max(c.last_token for c in self.choices) or time.time(),
        )

    async def _one(self, choice: Choice) -> AsyncGenerator[Item, None]:
        async with aclosing(self.engine.generate(choice.request)) as deltas:
            async for delta in deltas:
                yield choice, self._take(choice, delta)
                if choice.finished:
                    return  # closing the stream aborts what a stop string has cut short

    async def _merged(self) -> AsyncGenerator[Item, None]:
        queue: asyncio.Queue[Item | Exception | None] = asyncio.Queue()
        self._tasks = [asyncio.ensure_future(self._pump(choice, queue)) for choice in self.choices]
        running = len(self._tasks)
        while running:
            item = await queue.get()
            if item is None:
                running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item

    async def _pump(self, choice: Choice, queue: asyncio.Queue[Item | Exception | None]) -> None:
        try:
            source = self._one(choice)
            async with aclosing(source):
                async for item in source:
                    queue.put_nowait(item)
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    def _take(self, choice: Choice, delta: TokenDelta) -> OutputDelta:
        if delta.finish_reason == "abort" and self._failure is not None:
            raise self._failure
        if delta.finish_reason == "error":
            logger.error("Request %s failed in the engine: %s", self.public_id, delta.error)
            raise internal_error()
        now = time.time()
        if delta.token_ids:
            if choice.last_token:
                self.metrics.inter_token((now - choice.last_token) / len(delta.token_ids))
            else:
                choice.first_token = delta.first_token_time or now
                choice.scheduled = delta.scheduled_time
                choice.cached_tokens = delta.num_cached_tokens
            choice.last_token = now
        if delta.prompt_logprobs is not None:
            choice.prompt_logprobs = (choice.prompt_logprobs or []) + delta.prompt_logprobs
        out = choice.assembler.feed(delta)
        if out.finish_reason is not None:
            self._account(choice, out.finish_reason)
        return out

    def _account(self, choice: Choice, reason: str) -> None:
        timings = Timings(self.arrival, choice.scheduled, choice.first_token, choice.last_token or time.time())
        tokens = choice.assembler.num_tokens
        self.metrics.finished(reason, timings, len(choice.prompt.token_ids), choice.cached_tokens, tokens)

    async def _close(self, reason: FinishReason | None) -> None:
        """Stop what still runs, and account for it as ended for ``reason``."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for choice in self.choices:
            if reason is not None and not choice.finished:
                self._account(choice, reason)


def make_choices(
    prompts: Sequence[tuple[EncodedPrompt, list[EngineRequest]]],
    stream: Callable[[bool, Sequence[int]], TextStream | None],
) -> list[Choice]:
    """The choices of all prompts, numbered as OpenAI does: prompt by prompt. Gives engine requests unique ids."""
    choices: list[Choice] = []
    for prompt, requests in prompts:
        for i, request in enumerate(requests):
            request.request_id = f"{request.request_id}#{next(_serial)}"
            assembler = CompletionAssembler(
                request.params, stream(request.params.skip_special_tokens, prompt.token_ids)
            )
            choices.append(Choice(len(choices), prompt, i == 0, request, assembler))
    return choices
