"""An engine to embed in other servers: requests from one event loop, the model in a process of its own."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Self

from quire.config.engine import DEFAULT_MODEL
from quire.config.keywords import engine_config
from quire.engine.messages import EngineRequest, TokenDelta
from quire.engine.process import ProcessEngine
from quire.model.support import open_supported
from quire.outputs import RequestOutput
from quire.params import ParameterError, SamplingParams
from quire.text.front import open_front
from quire.text.job import Job
from quire.text.prompt import EncodedPrompt, Prompt
from quire.text.tokenizer import Tokenizer
from quire.weights.progress import progress_bar
from quire.weights.sources import locate


class AsyncLLM:
    """``options`` are those of ``LLM``. Start it in the event loop that uses it, or use it as a context manager.

    >>> async with AsyncLLM() as llm:
    ...     async for output in llm.generate("Once upon a time", SamplingParams(max_tokens=20)):
    ...         print(output.outputs[0].text)
    """

    def __init__(self, model: str = DEFAULT_MODEL, **options: Any) -> None:
        self.config = engine_config(model, options)
        self._ids = itertools.count()
        self._jobs: dict[str, Job] = {}

    async def start(self) -> None:
        """Load the model. Raises ``EngineDead`` or ``WeightsError`` when that fails."""
        with progress_bar() as progress:
            path = await asyncio.to_thread(locate, self.config, progress)
        checkpoint = await asyncio.to_thread(open_supported, self.config, path)
        self.config = replace(self.config, model=str(path))
        self._engine = ProcessEngine(self.config)
        starting = asyncio.create_task(self._engine.start())
        self._front = await asyncio.to_thread(open_front, self.config, checkpoint)
        await starting
        self._processor = self._front.processor(self._engine.limits)

    async def shutdown(self) -> None:
        """End the engine's process; requests in flight end with finish_reason "abort"."""
        await self._engine.shutdown()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.shutdown()

    def get_tokenizer(self) -> Tokenizer | None:
        return self._front.tokenizer

    async def abort(self, request_id: str) -> None:
        """End a request with finish_reason "abort"; one that is not running is ignored."""
        if (job := self._jobs.get(request_id)) is not None:
            await self._engine.abort([request.request_id for request in job.requests])

    async def reset_prefix_cache(self) -> None:
        await self._engine.reset_prefix_cache()

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
    ) -> AsyncIterator[RequestOutput]:
        """Complete a prompt: yields the output so far whenever there is more. Closing the iterator cancels it.

        ``request_id`` names the request in its outputs and for ``abort``; no two that run may share one.
        """
        encoded = await asyncio.to_thread(self._processor.encode, prompt)
        async with aclosing(self._run(encoded, sampling_params, request_id, priority)) as outputs:
            async for output in outputs:
                yield output

    async def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
    ) -> AsyncIterator[RequestOutput]:
        """Answer a conversation, as ``generate`` does."""
        encoded = await asyncio.to_thread(self._processor.encode_chat, messages)
        async with aclosing(self._run(encoded, sampling_params, request_id, priority)) as outputs:
            async for output in outputs:
                yield output

    async def _run(
        self, prompt: EncodedPrompt, params: SamplingParams | None, request_id: str | None, priority: int
    ) -> AsyncGenerator[RequestOutput, None]:
        params = params or SamplingParams(**self._processor.facts.sampling_defaults)
        name = f"request-{next(self._ids)}" if request_id is None else request_id
        if name in self._jobs:
            raise ParameterError("request_id", "request_id is that of a request that is running: choose another.")
        job = self._jobs[name] = Job(self._front, self._processor, name, prompt, params, priority)
        queue: asyncio.Queue[tuple[int, TokenDelta | Exception]] = asyncio.Queue()
        readers = [asyncio.create_task(self._read(i, request, queue)) for i, request in enumerate(job.requests)]
        try:
            while not job.finished:
                index, delta = await queue.get()
                if isinstance(delta, Exception):
                    raise delta
                if job.feed(index, delta):
                    readers[index].cancel()
                yield job.output()
        finally:
            del self._jobs[name]
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)

    async def _read(
        self, index: int, request: EngineRequest, queue: asyncio.Queue[tuple[int, TokenDelta | Exception]]
    ) -> None:
        try:
            async with aclosing(self._engine.generate(request)) as stream:
                async for delta in stream:
                    queue.put_nowait((index, delta))
        except Exception as error:
            queue.put_nowait((index, error))
