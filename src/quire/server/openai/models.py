"""``/v1/models``."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from quire.server.errors import ApiError
from quire.server.service import ModelCard, service_of

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """The names of the model being served."""
    card = service_of(request).serving_card
    return {"object": "list", "data": [_entry(card, name) for name in card.names]}


@router.get("/v1/models/{model:path}")
async def retrieve_model(model: str, request: Request) -> dict[str, Any]:
    """One model, with the sampling values used where a request gives none."""
    card = service_of(request).serving_card
    if model not in card.accepted:
        raise ApiError(404, f"This server has no such model; it serves {card.name}.", "model")
    return _entry(card, model)


def _entry(card: ModelCard, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": card.created,
        "owned_by": "quire",
        "root": card.name,
        "parent": None,
        "max_model_len": card.max_model_len,
        "has_chat_template": card.has_chat_template,
        "sampling_defaults": dict(card.sampling_defaults),
        "permission": [],
    }
