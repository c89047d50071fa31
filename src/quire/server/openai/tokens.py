"""``/tokenize`` and ``/detokenize``."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from quire.params import ParameterError
from quire.server.limits import JsonRoute
from quire.server.openai.fields import check_extra_fields
from quire.server.openai.protocol import DetokenizeRequest, TokenizeRequest
from quire.server.service import Service, service_of

router = APIRouter(route_class=JsonRoute)


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, request: Request) -> dict[str, Any]:
    """Token ids of a text or of a rendered conversation."""
    service = service_of(request)
    check_extra_fields(body, strict=service.config.strict)
    service.check_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise ParameterError("prompt", "Send either prompt or messages.")
    size = len(body.prompt or "") + sum(len(m.content) for m in body.messages or [])
    ids = await service.off_loop(size, lambda: _encode(service, body))
    names = service.loaded.text.names
    return {
        "count": len(ids),
        "max_model_len": service.card.max_model_len,
        "tokens": ids,
        "token_strs": [names.text(i) for i in ids] if body.return_token_strs else None,
    }


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, request: Request) -> dict[str, Any]:
    """The text of token ids."""
    service = service_of(request)
    check_extra_fields(body, strict=service.config.strict)
    service.check_model(body.model)
    top = service.loaded.processor.facts.limits.vocab_size
    if any(not 0 <= i < top for i in body.tokens):
        raise ParameterError("tokens", f"tokens must hold token ids from 0 to {top - 1}.")
    return {"prompt": await service.off_loop(len(body.tokens), lambda: service.loaded.text.decode(body.tokens))}


def _encode(service: Service, body: TokenizeRequest) -> list[int]:
    processor = service.loaded.processor
    if body.prompt is not None:
        return processor.tokenize(body.prompt, add_special_tokens=body.add_special_tokens is not False)
    return processor.tokenize_chat(
        [m.plain() for m in body.messages or []],
        **body.render_options(),
        add_special_tokens=bool(body.add_special_tokens),
        any_length=True,
    ).token_ids
