"""What ``chat`` and ``complete`` share: a server to talk to, streamed answers, a prompt line."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

from quire.cli.child import ChildFailed, quire_server
from quire.client import ApiClient, ServerError
from quire.config.client import ClientConfig
from quire.config.engine import ModelSource
from quire.config.options import changed

Ask = Callable[[ApiClient, str, str], Awaitable[None]]


def run_session(source: ModelSource, client: ClientConfig, ask: Ask) -> int:
    """Ask once (``--quick``) or line by line until the user leaves; the exit status."""
    try:
        asyncio.run(_session(source, client, ask))
    except (ServerError, ChildFailed) as error:
        print(f"quire: error: {error}", file=sys.stderr)
        return 1
    return 0


async def _session(source: ModelSource, client: ClientConfig, ask: Ask) -> None:
    async with _server(source, client) as api:
        model = await api.first_model()
        if client.quick is not None:
            await ask(api, model, client.quick)
            return
        print(f"{model}. An empty line or Ctrl-D leaves.", file=sys.stderr)
        while line := await asyncio.to_thread(_read_line):
            await ask(api, model, line)


@contextlib.asynccontextmanager
async def _server(source: ModelSource, client: ClientConfig) -> AsyncIterator[ApiClient]:
    if client.url is not None:
        yield ApiClient(client.url, client.api_key)
        return
    print(f"Starting {source.model} ...", file=sys.stderr)
    async with quire_server(environment=_environment(source)) as server:
        yield server.client


def _environment(source: ModelSource) -> dict[str, str]:
    """The source as variables for the child: unlike flags, they don't show the token to other users."""
    return {f"QUIRE_{name.upper()}": str(value) for name, value in changed(source).items()}


def _read_line() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""
