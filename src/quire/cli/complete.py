"""``quire complete``: text goes on where the user stopped."""

from __future__ import annotations

from quire.cli.session import run_session
from quire.client import ApiClient
from quire.config.client import ClientConfig, SamplingConfig
from quire.config.engine import ModelSource


def run(source: ModelSource, client: ClientConfig, sampling: SamplingConfig) -> int:
    async def ask(api: ApiClient, model: str, text: str) -> None:
        body = {"model": model, "prompt": text, "stream": True, **sampling.chosen()}
        before = text
        try:
            async for event in api.stream("/v1/completions", body):
                for choice in event["choices"]:
                    print(before + choice["text"], end="", flush=True)
                    before = ""
        finally:
            if not before:
                print()

    return run_session(source, client, sampling, ask)
