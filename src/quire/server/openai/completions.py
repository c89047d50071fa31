"""``/v1/completions``."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request, Response

from quire.engine.messages import EngineRequest
from quire.params import ParameterError, SamplingParams
from quire.server.generation import Choice, Generation
from quire.server.limits import JsonRoute
from quire.server.openai.events import Completion, CompletionChoice, CompletionLogprobs, encode, metrics_of, usage_of
from quire.server.openai.fields import check_extra_fields
from quire.server.openai.logprobs import LogprobShapes
from quire.server.openai.protocol import CompletionRequest
from quire.server.service import Service, cache_salt, request_id, service_of, tenant_of
from quire.server.sse import EventStream, event, while_connected
from quire.text.output import OutputDelta
from quire.text.prompt import EncodedPrompt
from quire.version import FINGERPRINT

_DEFAULT_MAX_TOKENS = 16
router = APIRouter(route_class=JsonRoute)


@router.post("/v1/completions")
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    """Continue one or several prompts."""
    arrival = time.time()
    service = service_of(request)
    headers = check_extra_fields(body, strict=service.config.strict)
    service.check_model(body.model)
    body.check_stream()
    params = _sampling(service, body)
    _check_count(service, body, params)
    public_id = request_id("cmpl", request, body.request_id)
    tenant = tenant_of(request)
    texts = sum(len(p) for p in body.prompt if isinstance(p, str))
    prompts = await service.off_loop(
        texts, lambda: _prompts(service, body, params, public_id, cache_salt(tenant, body.cache_salt), arrival)
    )
    generation = service.generation(public_id, tenant, prompts, params, arrival)
    answer = _Answer(service, body, generation)
    headers["X-Request-Id"] = public_id
    if body.stream:
        return EventStream(
            answer.events(), service.metrics.client_gone, headers, service.config.sse_keep_alive_interval
        )
    payload = await while_connected(request.receive, answer.whole())
    return Response(payload, headers=headers, media_type="application/json")


def _sampling(service: Service, body: CompletionRequest) -> SamplingParams:
    max_tokens = _DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    more: dict[str, Any] = {}
    if body.echo and max_tokens == 0:
        max_tokens = 1  # only the prompt is wanted; what is generated for it is dropped
    if body.echo and body.logprobs is not None and body.prompt_logprobs is None:
        if body.stream:
            raise ParameterError("echo", "echo with logprobs can't be streamed: leave out stream.")
        more["prompt_logprobs"] = body.logprobs
    return body.sampling(
        service.loaded.processor.facts.sampling_defaults, max_tokens=max_tokens, logprobs=body.logprobs, **more
    )


def _check_count(service: Service, body: CompletionRequest, params: SamplingParams) -> None:
    most = service.config.max_prompts
    if len(body.prompt) * params.n > most:
        raise ParameterError("prompt", f"prompt and n ask for more than {most} completions (--max-prompts).")


def _prompts(
    service: Service, body: CompletionRequest, params: SamplingParams, public_id: str, salt: str, arrival: float
) -> list[tuple[EncodedPrompt, list[EngineRequest]]]:
    processor = service.loaded.processor
    found: list[tuple[EncodedPrompt, list[EngineRequest]]] = []
    for prompt in body.prompt:
        encoded = processor.encode(
            prompt,
            add_special_tokens=body.add_special_tokens is not False,
            truncate=body.truncate_prompt_tokens,
            side=body.truncation_side or "left",
        )
        requests = processor.requests(
            public_id,
            encoded,
            params,
            clip_max_tokens=body.max_tokens is None,
            priority=body.priority or 0,
            cache_salt=salt,
            arrival_time=arrival,
        )
        found.append((encoded, requests))
    return found


class _Answer:
    """Renders one request's generation."""

    def __init__(self, service: Service, body: CompletionRequest, generation: Generation) -> None:
        self._service = service
        self._body = body
        self._generation = generation
        self._shapes = LogprobShapes(service.loaded.names, bool(body.return_tokens_as_token_ids))
        self._created = int(generation.arrival)
        self._echo_only = bool(body.echo and body.max_tokens == 0)
        self._interval = body.stream_interval or service.config.stream_interval

    async def whole(self) -> bytes:
        """The unstreamed answer."""
        generation = self._generation
        parts: list[list[OutputDelta]] = [[] for _ in generation.choices]
        with self._service.registered(generation):
            async for choice, out in generation.outputs():
                parts[choice.index].append(out)
        totals = generation.totals()
        choices = [self._choice(c, merge(parts[c.index]), whole=True) for c in generation.choices]
        return encode(
            Completion(
                generation.public_id,
                self._created,
                self._service.card.name,
                choices,
                usage=usage_of(totals),
                metrics=metrics_of(totals),
                system_fingerprint=FINGERPRINT,
            )
        )

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The streamed answer, an event for each delta (or each ``stream_interval`` tokens)."""
        generation, body = self._generation, self._body
        unfinished = len(generation.choices)
        echoed = [not body.echo] * unfinished
        pace = Pace(unfinished, self._interval)
        with self._service.registered(generation):
            async for choice, delta in generation.outputs():
                out = pace.take(choice.index, delta)
                if out is None:
                    continue
                first = not echoed[choice.index]
                echoed[choice.index] = True
                chunk = self._chunk([self._choice(choice, out, whole=first)])
                if out.finish_reason is not None:
                    unfinished -= 1
                    chunk.system_fingerprint = FINGERPRINT
                    if not unfinished and not body.include_usage:
                        chunk.metrics = metrics_of(generation.totals())
                if body.continuous_usage:
                    chunk.usage = usage_of(generation.totals())
                yield event(encode(chunk))
        if body.include_usage:
            totals = generation.totals()
            chunk = self._chunk([])
            chunk.usage, chunk.metrics = usage_of(totals), metrics_of(totals)
            yield event(encode(chunk))

    def _chunk(self, choices: list[CompletionChoice]) -> Completion:
        return Completion(self._generation.public_id, self._created, self._service.card.name, choices)
