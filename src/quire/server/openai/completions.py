"""``/v1/completions``."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request, Response

from quire.engine.messages import EngineRequest, TokenLogprobs
from quire.params import SamplingParams
from quire.server.errors import ApiError
from quire.server.generation import Choice, Generation, Totals
from quire.server.limits import JsonRoute
from quire.server.openai.answer import FINGERPRINT, Answer
from quire.server.openai.events import Completion, CompletionChoice, CompletionLogprobs, encode, metrics_of, usage_of
from quire.server.openai.fields import check_extra_fields
from quire.server.openai.protocol import CompletionRequest
from quire.server.service import Service, cache_salt, request_id, service_of, tenant_of
from quire.text.output import OutputDelta, token_offsets
from quire.text.prompt import EncodedPrompt

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
    return await CompletionAnswer(service, body, generation).respond(request, headers)


def _sampling(service: Service, body: CompletionRequest) -> SamplingParams:
    max_tokens = _DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    more: dict[str, Any] = {}
    if body.echo and max_tokens == 0:
        max_tokens = 1  # only the prompt is wanted; what is generated for it is dropped
    if body.echo and body.logprobs is not None and body.prompt_logprobs is None:
        more["prompt_logprobs"] = body.logprobs
    return body.sampling(
        service.loaded.processor.facts.sampling_defaults, max_tokens=max_tokens, logprobs=body.logprobs, **more
    )


def _check_count(service: Service, body: CompletionRequest, params: SamplingParams) -> None:
    most = service.config.max_prompts
    if len(body.prompt) * params.n > most:
        raise ApiError(400, f"prompt and n ask for more than {most} completions (--max-prompts).", "prompt")


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
        requests = processor.request(
            public_id,
            encoded,
            params,
            clip_max_tokens=body.max_tokens is None,
            priority=service.check_priority(body.priority),
            cache_salt=salt,
            arrival_time=arrival,
        )
        found.append((encoded, requests))
    return found


class CompletionAnswer(Answer[CompletionRequest]):
    def __init__(self, service: Service, body: CompletionRequest, generation: Generation) -> None:
        super().__init__(service, body, generation, keep_silent=body.logprobs is not None)
        self._only_echo = bool(body.echo and body.max_tokens == 0)

    async def whole(self) -> bytes:
        """The unstreamed answer."""
        outs = await self.collect()
        choices = [self._choice(c, outs[c.index], first=True) for c in self.generation.choices]
        totals = self.totals()
        answer = self._completion(choices)
        answer.usage, answer.metrics = usage_of(totals), metrics_of(totals)
        answer.system_fingerprint = FINGERPRINT
        return encode(answer)

    def chunk(self, choice: Choice, out: OutputDelta, *, first: bool) -> Completion:
        return self._completion([self._choice(choice, out, first=first)])

    def closing(self) -> Completion:
        return self._completion([])

    def totals(self) -> Totals:
        totals = super().totals()
        if self._only_echo:
            totals.completion_tokens = 0
        return totals

    def _completion(self, choices: list[CompletionChoice]) -> Completion:
        return Completion(self.generation.public_id, self.created, self.model, choices)

    def _choice(self, choice: Choice, out: OutputDelta, *, first: bool) -> CompletionChoice:
        """One choice; the ``first`` of its events carries what belongs to the prompt."""
        body = self.body
        if self._only_echo:
            out = OutputDelta(finish_reason="length", logprobs=[] if out.logprobs is not None else None)
        rendered = CompletionChoice(
            choice.index, out.text, self._logprobs(choice, out, first), out.finish_reason, out.stop_reason
        )
        if body.return_token_ids:
            rendered.token_ids = out.token_ids
        if first:
            if body.echo:
                rendered.text = self._prompt_text(choice) + out.text
            if body.return_token_ids:
                rendered.prompt_token_ids = choice.prompt.token_ids
            if body.prompt_logprobs is not None and choice.prompt_logprobs is not None:
                rendered.prompt_logprobs = self.shapes.prompt(choice.prompt_logprobs)
        return rendered

    def _prompt_text(self, choice: Choice) -> str:
        if choice.prompt.text is not None:
            return choice.prompt.text
        return self.text.decode(choice.prompt.token_ids)

    def _logprobs(self, choice: Choice, out: OutputDelta, first: bool) -> CompletionLogprobs | None:
        if self.body.logprobs is None or out.logprobs is None:
            return None
        positions: list[TokenLogprobs | None] = list(out.logprobs)
        if not self.body.echo:
            return self.shapes.completion(positions, out.token_ids, out.offsets)
        start = len(self._prompt_text(choice))
        shifted = [start + o for o in out.offsets]
        if not first or choice.prompt_logprobs is None:
            return self.shapes.completion(positions, out.token_ids, shifted)
        ids = choice.prompt.token_ids
        offsets = [min(o, start) for o in token_offsets(self.text.stream(True), ids)]
        return self.shapes.completion(choice.prompt_logprobs + positions, ids + out.token_ids, offsets + shifted)
