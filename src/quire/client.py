"""A small asynchronous client of OpenAI-compatible servers: enough to stream answers and to time them.

It speaks HTTP/1.1 on a connection for each request and costs the measuring machine next to nothing.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

_MAX_LINE = 1 << 20


class ServerError(Exception):
    """The server refused or broke off; ``status`` is 0 when there was no answer at all."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class ApiClient:
    """``base_url`` with or without ``/v1``; ``timeout`` is the longest silence in seconds."""

    base_url: str
    api_key: str | None = None
    timeout: float = 600.0

    async def get(self, path: str) -> Any:
        """The JSON that a GET returns; raises ``ServerError``."""
        return json.loads(await self._whole("GET", path, None))

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON that a POST of JSON returns; raises ``ServerError``."""
        return json.loads(await self._whole("POST", path, body))

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The events of a server-sent stream, as they come; raises ``ServerError``."""
        async for line in self._lines("POST", path, body):
            if line.startswith(b"data:"):
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                event = json.loads(data)
                if "error" in event:
                    raise ServerError(500, _message(data))
                yield event

    async def first_model(self) -> str:
        """The name of the server's first model."""
        return str((await self.get("/v1/models"))["data"][0]["id"])

    async def ready(self) -> bool:
        """Whether the server can take requests: ``/ready`` where there is one, ``/health`` elsewhere."""
        for path in ("/ready", "/health"):
            try:
                await self._whole("GET", path, None)
                return True
            except ServerError as error:
                if error.status != 404:
                    return False
        return False

    async def _whole(self, method: str, path: str, body: dict[str, Any] | None) -> bytes:
        return b"".join([part async for part in self._parts(method, path, body)])

    async def _lines(self, method: str, path: str, body: dict[str, Any] | None) -> AsyncIterator[bytes]:
        rest = b""
        async for part in self._parts(method, path, body):
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                yield line
        if rest:
            yield rest

    async def _parts(self, method: str, path: str, body: dict[str, Any] | None) -> AsyncIterator[bytes]:
        try:
            async with asyncio.timeout(self.timeout):
                reader, writer = await self._connect()
            try:
                writer.write(self._request(method, path, body))
                await writer.drain()
                status, headers = await self._head(reader)
                parts = _body_parts(reader, headers, self.timeout)
                if status >= 400:
                    raise ServerError(status, _message(b"".join([part async for part in parts])))
                async for part in parts:
                    yield part
            finally:
                writer.close()
        except TimeoutError:
            raise ServerError(0, f"{self.base_url} said nothing for {self.timeout:g} s.") from None
        except asyncio.IncompleteReadError:
            raise ServerError(0, f"{self.base_url} broke off in the middle of its answer.") from None
        except (OSError, ValueError) as error:
            raise ServerError(0, f"No proper answer from {self.base_url}: {error}") from None

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ServerError(0, f"{self.base_url!r} is no http address.")
        secure = ssl.create_default_context() if url.scheme == "https" else None
        port = url.port or (443 if secure else 80)
        return await asyncio.open_connection(url.hostname, port, ssl=secure, limit=_MAX_LINE)

    def _request(self, method: str, path: str, body: dict[str, Any] | None) -> bytes:
        url = urlsplit(self.base_url)
        prefix = url.path.rstrip("/").removesuffix("/v1")
        payload = b"" if body is None else json.dumps(body).encode()
        lines = [
            f"{method} {prefix}{path} HTTP/1.1",
            f"Host: {url.netloc}",
            "Connection: close",
            "Content-Type: application/json",
            f"Content-Length: {len(payload)}",
        ]
        if self.api_key:
            lines.append(f"Authorization: Bearer {self.api_key}")
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + payload

    async def _head(self, reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
        async with asyncio.timeout(self.timeout):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(head[0].split(" ", 2)[1])
        pairs = (line.split(":", 1) for line in head[1:] if ":" in line)
        return status, {name.strip().lower(): value.strip() for name, value in pairs}


async def _body_parts(reader: asyncio.StreamReader, headers: dict[str, str], timeout: float) -> AsyncIterator[bytes]:
    chunked = "chunked" in headers.get("transfer-encoding", "").lower()
    left = int(headers["content-length"]) if "content-length" in headers and not chunked else None
    while left is None or left > 0:
        async with asyncio.timeout(timeout):
            if chunked:
                part = await _chunk(reader)
            else:
                part = await reader.read(65536 if left is None else min(left, 65536))
        if not part:
            break
        if left is not None:
            left -= len(part)
        yield part


async def _chunk(reader: asyncio.StreamReader) -> bytes:
    line = await reader.readline()
    if not line:
        raise asyncio.IncompleteReadError(line, None)
    size = int(line.split(b";")[0], 16)
    part = await reader.readexactly(size)
    await reader.readexactly(2)
    return part


def _message(body: bytes) -> str:
    """What an error body says, in any server's shape."""
    try:
        error = json.loads(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")[:300] or "no message"
