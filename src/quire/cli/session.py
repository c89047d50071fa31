"""What ``chat`` and ``complete`` share: a server to talk to, streamed answers, a prompt line."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from quire.cli.child import quire_server
from quire.client import ApiClient, ServerError
from quire.config.client import ClientConfig, SamplingConfig
from quire.config.engine import ModelSource
from quire.config.options import specs_of
from quire.params import SamplingParams

Ask = Callable[[ApiClient, str, str], Coroutine[Any, Any, None]]


def run_session(source: ModelSource, client: ClientConfig, sampling: SamplingConfig, ask: Ask) -> int:
    """Ask once (``--quick``) or line by line until the user leaves; the exit status."""
    SamplingParams(**sampling.chosen())  # refuses what is out of range before a server is started for it
    with asyncio.Runner() as runner, _server(runner, source, client) as api:
        model = runner.run(api.first_model())
        if client.quick is not None:
            runner.run(ask(api, model, client.quick))
            return 0
        if sys.stdin.isatty():
            print(f"{model}. An empty line or Ctrl-D leaves, Ctrl-C ends an answer.", file=sys.stderr)
        # The line is read outside the event loop, which would keep Ctrl-C from a thread that waits for input.
        while line := _read_line():
            try:
                runner.run(ask(api, model, line))
            except KeyboardInterrupt:
                continue
            except ServerError as error:
                print(f"error: {error}", file=sys.stderr)
    return 0


@contextlib.contextmanager
def _server(runner: asyncio.Runner, source: ModelSource, client: ClientConfig) -> Iterator[ApiClient]:
    if client.url is not None:
        yield ApiClient(client.url, client.api_key)
        return
    print(f"Starting {source.model} ...", file=sys.stderr)
    stack = contextlib.AsyncExitStack()
    try:
        yield runner.run(stack.enter_async_context(quire_server(environment=_environment(source)))).client
    finally:
        runner.run(stack.aclose())


def _environment(source: ModelSource) -> dict[str, str]:
    """The source as variables for the child: unlike flags, they don't show the token to other users."""
    values = ((spec.env_names[0], getattr(source, spec.name)) for spec in specs_of(ModelSource))
    return {name: "" if value is None else str(value) for name, value in values}


def _read_line() -> str:
    """What the user types next, or the next line of a pipe; empty at the end."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().strip()
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() arrow keys and a history
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return ""
