"""The ASGI application."""

from __future__ import annotations

import logging
import time

from fastapi import FastAPI, Request, Response
from starlette._utils import get_route_path
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quire.config.sources import suggestion
from quire.server import system
from quire.server.auth import RequireKey
from quire.server.errors import HANDLED, ApiError, error_of, error_response, on_error
from quire.server.openai import chat, completions, models, tokens
from quire.server.openai.fields import WARNING_HEADER
from quire.server.service import Service, service_of
from quire.server.sse import ClientGone
from quire.version import __version__

logger = logging.getLogger("quire.server")
ROUTERS = [module.router for module in (system, completions, chat, models, tokens)]


def create_app(service: Service) -> FastAPI:
    """All routes over ``service``, behind its keys."""
    app = FastAPI(title="Quire", version=__version__, docs_url=None, redoc_url=None)
    app.state.service = service
    app.state.max_body_bytes = service.config.max_body_bytes
    for router in ROUTERS:
        app.include_router(router)
    app.router.default = no_such_route
    for kind in HANDLED:
        app.add_exception_handler(kind, on_error)
    app.add_exception_handler(ClientGone, on_client_gone)
    app.add_middleware(RequireKey, keys=service.keys)
    if service.config.allowed_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=service.config.allowed_origins, allow_methods=["*"], allow_headers=["*"],
            expose_headers=["X-Request-Id", WARNING_HEADER, "Retry-After"],
        )  # fmt: skip
    app.add_middleware(Account, service=service)
    app.add_middleware(Entrance, root_path=service.config.root_path)
    return app


async def on_client_gone(request: Request, _: Exception) -> Response:
    """Nobody reads this answer; it closes the books on the request."""
    service_of(request).metrics.client_gone()
    return error_response(499, "The client closed the connection.")


async def no_such_route(scope: Scope, receive: Receive, send: Send) -> None:
    """ASGI application where no route matches: names the nearest, for many forget /v1 or write it twice."""
    paths = [route.path for router in ROUTERS for route in router.routes if isinstance(route, Route)]
    raise ApiError(404, f"There is no such route.{suggestion(get_route_path(scope), paths, likeness=0.8)}")


class Entrance:
    """ASGI middleware that makes requests look as the routes expect them.

    HEAD, which monitors send, is GET (uvicorn leaves out the body); paths may begin with ``root_path``, or not.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        seen = {**scope, "root_path": self._root_path}
        if scope.get("method") == "HEAD":
            seen["method"] = "GET"
        await self._app(seen, receive, send)


class Account:
    """ASGI middleware that counts requests in flight and by outcome, and answers where a route failed to.

    (Starlette's own last resort raises on, which makes uvicorn cut the connection.)
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        service, started = self._service, time.monotonic()
        service.in_flight += 1
        try:
            await self._app(scope, receive, counted)
        except Exception as error:
            if status:
                logger.error("An answer broke off.", exc_info=error)
                raise
            await error_of(error)(scope, receive, counted)
        finally:
            service.in_flight -= 1
            route = getattr(scope.get("route"), "path", "none")
            service.account(route, scope["method"], status or 499, time.monotonic() - started)
