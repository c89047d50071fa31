"""Routes about the server itself."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from quire.server.errors import ApiError, error_response
from quire.server.service import service_of, tenant_of
from quire.version import __version__

router = APIRouter()


@router.get("/health")
@router.get("/ping")
@router.post("/ping", include_in_schema=False)
async def health(request: Request) -> Response:
    """200 while the engine lives; 503 before it has started and after it has ended."""
    service = service_of(request)
    if not service.alive:
        return error_response(503, service.obstacle() or "The engine has ended.")
    return Response(status_code=200)


@router.get("/ready")
async def ready(request: Request) -> Response:
    """200 when requests are served; 503 with the phase while starting, draining, stalled or dead."""
    service = service_of(request)
    if (obstacle := service.obstacle()) is not None:
        return error_response(503, obstacle, headers={"Retry-After": "1"})
    return Response(b'{"status":"ready"}', media_type="application/json")


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    return Response(service_of(request).metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/version")
async def version() -> dict[str, str]:
    return {"version": __version__}


@router.post("/v1/requests/{request_id}/cancel")
async def cancel(request_id: str, request: Request) -> dict[str, Any]:
    """End a request in flight; what it has generated so far is its answer, with finish reason "abort"."""
    if not await service_of(request).cancel(request_id, tenant_of(request)):
        raise ApiError(404, "No request of that id is running.", "request_id")
    return {"id": request_id, "cancelled": True}


@router.post("/reset_prefix_cache")
async def reset_prefix_cache(request: Request) -> Response:
    """Forget every cached page that no request uses."""
    await service_of(request).loaded.engine.reset_prefix_cache()
    return Response(status_code=200)
