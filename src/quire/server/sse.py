"""Server-sent events, and work that ends when its client goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from quire.server.errors import as_api_error

_KEEP_ALIVE = b": keep-alive\n\n"
_DONE = b"data: [DONE]\n\n"
T = TypeVar("T")


class ClientGone(Exception):
    """The client closed the connection before its answer was complete."""


def event(payload: bytes) -> bytes:
    return b"data: " + payload + b"\n\n"


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``; cancels it and raises ``ClientGone`` when the client goes away first."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Streams framed events, then ``[DONE]``. The events are closed, and ``on_gone`` called, when the client leaves.

    The head goes out with the first event, so that an ``ApiError`` raised before it is a plain HTTP error; raised
    later it becomes an error event. With ``keep_alive`` > 0 that many seconds of silence are filled with a comment.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        on_gone: Callable[[], None],
        headers: dict[str, str] | None = None,
        keep_alive: float = 0.0,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self.headers["content-type"] = "text/event-stream; charset=utf-8"
        self._events = events
        self._on_gone = on_gone
        self._keep_alive = keep_alive
        self._started = False
        self._written = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._pump(send))
        except ClientGone:
            self._on_gone()

    async def _pump(self, send: Send) -> None:
        keeper = asyncio.ensure_future(self._keep_alive_loop(send)) if self._keep_alive > 0 else None
        try:
            async for chunk in self._events:
                await self._write(send, chunk)
        except Exception as error:
            if not self._started:
                raise
            await self._write(send, event(as_api_error(error).body()))
        finally:
            if keeper is not None:
                keeper.cancel()
                with suppress(asyncio.CancelledError):
                    await keeper
            await self._events.aclose()
        await self._write(send, _DONE, more=False)

    async def _write(self, send: Send, chunk: bytes, *, more: bool = True) -> None:
        if not self._started:
            self._started = True
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        self._written += 1
        await send({"type": "http.response.body", "body": chunk, "more_body": more})

    async def _keep_alive_loop(self, send: Send) -> None:
        while True:
            written = self._written
            await asyncio.sleep(self._keep_alive)
            if written == self._written:
                await self._write(send, _KEEP_ALIVE)
