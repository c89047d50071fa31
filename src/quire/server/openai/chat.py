"""``/v1/chat/completions``."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request, Response

from quire.engine.messages import EngineRequest
from quire.params import ParameterError, SamplingParams
from quire.server.generation import Choice, Generation
from quire.server.limits import JsonRoute
from quire.server.openai.answer import FINGERPRINT, Answer
from quire.server.openai.events import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    encode,
    metrics_of,
    usage_of,
)
from quire.server.openai.fields import check_extra_fields
from quire.server.openai.protocol import ChatRequest
from quire.server.service import Service, cache_salt, request_id, service_of, tenant_of
from quire.text.output import OutputDelta
from quire.text.prompt import EncodedPrompt

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/chat/completions")
async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation."""
    arrival = time.time()
    service = service_of(request)
    headers = check_extra_fields(body, strict=service.config.strict)
    service.check_model(body.model)
    body.check_stream()
    params = _sampling(service, body)
    public_id = request_id("chatcmpl", request, body.request_id)
    tenant = tenant_of(request)
    size = sum(len(m.content) for m in body.messages)
    prompt = await service.off_loop(
        size, lambda: _prompt(service, body, params, public_id, cache_salt(tenant, body.cache_salt), arrival)
    )
    generation = service.generation(public_id, tenant, [prompt], params, arrival)
    return await ChatAnswer(service, body, generation).respond(request, headers)


def _sampling(service: Service, body: ChatRequest) -> SamplingParams:
    logprobs = None
    if body.logprobs:
        logprobs = body.top_logprobs or 0
    elif body.top_logprobs:
        raise ParameterError("top_logprobs", "top_logprobs needs logprobs to be true.")
    max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    defaults = service.loaded.processor.facts.sampling_defaults
    try:
        return body.sampling(defaults, max_tokens=max_tokens, logprobs=logprobs)
    except ParameterError as error:
        raise _renamed(error, body) from None


def _renamed(error: ParameterError, body: ChatRequest) -> ParameterError:
    """The error with the name that this request used for the field."""
    used = {"logprobs": "top_logprobs"}
    if body.max_completion_tokens is not None:
        used["max_tokens"] = "max_completion_tokens"
    name = used.get(error.param)
    return ParameterError(name, str(error).replace(error.param, name, 1)) if name else error


def _prompt(
    service: Service, body: ChatRequest, params: SamplingParams, public_id: str, salt: str, arrival: float
) -> tuple[EncodedPrompt, list[EngineRequest]]:
    processor = service.loaded.processor
    encoded = processor.encode_chat(
        [m.plain() for m in body.messages],
        **body.render_options(),
        add_special_tokens=bool(body.add_special_tokens),
        truncate=body.truncate_prompt_tokens,
        side=body.truncation_side or "left",
    )
    try:
        requests = processor.request(
            public_id,
            encoded,
            params,
            priority=service.check_priority(body.priority),
            cache_salt=salt,
            arrival_time=arrival,
        )
    except ParameterError as error:
        raise _renamed(error, body) from None
    return encoded, requests


class ChatAnswer(Answer[ChatRequest]):
    def __init__(self, service: Service, body: ChatRequest, generation: Generation) -> None:
        super().__init__(service, body, generation, keep_silent=bool(body.logprobs))
        self._role = service.config.response_role
        last = body.messages[-1]
        self._echo = last.content if body.echo and last.role == self._role else ""

    async def whole(self) -> bytes:
        outs = await self.collect()
        totals = self.totals()
        first = self.generation.choices[0]
        answer = ChatCompletion(
            self.generation.public_id,
            self.created,
            self.model,
            [self._choice(c, outs[c.index]) for c in self.generation.choices],
            usage_of(totals),
            metrics_of(totals),
            FINGERPRINT,
        )
        if self.body.prompt_logprobs is not None and first.prompt_logprobs is not None:
            answer.prompt_logprobs = self.shapes.prompt(first.prompt_logprobs)
        self._add_prompt(answer)
        return encode(answer)

    def opening(self, choice: Choice) -> ChatChunk:
        chunk = self._chunk([ChatChunkChoice(choice.index, ChatDelta(role=self._role, content=self._echo))])
        self._add_prompt(chunk)
        return chunk

    def chunk(self, choice: Choice, out: OutputDelta, *, first: bool) -> ChatChunk:
        rendered = ChatChunkChoice(choice.index, ChatDelta(content=out.text), self._logprobs(out), out.finish_reason)
        if out.finish_reason is not None:
            rendered.stop_reason = out.stop_reason
        if self.body.return_token_ids:
            rendered.token_ids = out.token_ids
        return self._chunk([rendered])

    def closing(self) -> ChatChunk:
        return self._chunk([])

    def _chunk(self, choices: list[ChatChunkChoice]) -> ChatChunk:
        return ChatChunk(self.generation.public_id, self.created, self.model, choices)

    def _choice(self, choice: Choice, out: OutputDelta) -> ChatChoice:
        message = ChatMessage(self._role, self._echo + out.text)
        rendered = ChatChoice(choice.index, message, self._logprobs(out), out.finish_reason, out.stop_reason)
        if self.body.return_token_ids:
            rendered.token_ids = out.token_ids
        return rendered

    def _logprobs(self, out: OutputDelta) -> ChatLogprobs | None:
        return self.shapes.chat(out.logprobs) if self.body.logprobs and out.logprobs is not None else None

    def _add_prompt(self, answer: ChatCompletion | ChatChunk) -> None:
        prompt = self.generation.choices[0].prompt
        if self.body.return_token_ids:
            answer.prompt_token_ids = prompt.token_ids
        if self.body.return_prompt_text:
            answer.prompt_text = prompt.text or ""
