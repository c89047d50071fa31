"""Bounds on what a request may hold before anything looks at it: head, body, JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from fastapi import Request, Response
from fastapi.routing import APIRoute
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from quire.server.errors import ApiError, error_body

MAX_HEAD_BYTES = 64 * 1024
MAX_JSON_DEPTH = 64
MAX_JSON_VALUES = 1_000_000  # all streams wait while a body is parsed: a million take about half a second
MAX_JSON_CONTAINERS = 250_000  # lists and objects take several times as long as numbers
_FIRST_HEAD_SECONDS = 60.0  # for a new connection to send its first request line and headers


def parse_json(body: bytes) -> Any:
    """Strict JSON: UTF-8, no NaN or Infinity, numbers within range, bounded in depth and in its number of values."""
    _check_count(body)
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ApiError(400, "The body is not valid JSON (UTF-8; NaN and Infinity are not JSON numbers).") from None
    except RecursionError:
        raise _too_deep() from None
    _check_depth(value)
    return value


def _check_count(body: bytes) -> None:
    """Signs inside texts count too: a text with so many is longer than any context."""
    if body.count(b",") > MAX_JSON_VALUES or body.count(b"[") + body.count(b"{") > MAX_JSON_CONTAINERS:
        raise ApiError(
            413,
            f"The body holds more than {MAX_JSON_VALUES} values or {MAX_JSON_CONTAINERS} lists and objects: "
            "divide it among several requests.",
        )


def _check_depth(value: Any) -> None:
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(MAX_JSON_DEPTH):
        if not level:
            return
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
    if level:
        raise _too_deep()


def _too_deep() -> ApiError:
    return ApiError(400, f"The body's JSON is nested deeper than {MAX_JSON_DEPTH} levels.")


class BoundedRequest(Request):
    """A request whose body is counted while it arrives and parsed strictly."""

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            limit: int = self.app.state.max_body_bytes
            if int(self.headers.get("content-length") or 0) > limit:
                raise _too_large(limit)
            chunks: list[bytes] = []
            size = 0
            async for chunk in self.stream():
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                chunks.append(chunk)
            self._body = b"".join(chunks)
        return self._body

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            self._json = parse_json(await self.body())
        return self._json


def _too_large(limit: int) -> ApiError:
    message = f"The body is larger than {limit} bytes, this server's limit (--max-body-bytes)."
    return ApiError(413, message, headers={"Connection": "close"})


class JsonRoute(APIRoute):
    """A route whose body is JSON and nothing else."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            if request.method == "POST" and self.body_field is not None:
                kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
                if kind != "application/json":
                    raise ApiError(415, "The body must be sent with Content-Type application/json.")
            return await handler(BoundedRequest(request.scope, request.receive))

        return bounded


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP parser with bounds on the size of a head and the time to the first, which it lacks itself."""

    _head_bytes = 0
    _in_head = True
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(_FIRST_HEAD_SECONDS, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)

    def _head_came(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse_head()

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head_came()
        self._in_head = False
        self._head_bytes = 0
        if sum(len(name) + len(value) for name, value in self.headers) + len(self.url) > MAX_HEAD_BYTES:
            self._refuse_head()
            return
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "The request is not valid HTTP.")

    def _refuse_head(self) -> None:
        self._refuse(431, f"The request line and headers are larger than {MAX_HEAD_BYTES} bytes.")

    def _refuse(self, status: int, message: str) -> None:
        if self.transport.is_closing():
            return
        body = error_body(status, message)
        head = f"HTTP/1.1 {status} \r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()
