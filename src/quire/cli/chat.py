"""``quire chat``: a conversation in the terminal."""

from __future__ import annotations

from quire.cli.session import run_session
from quire.client import ApiClient
from quire.config.client import ChatConfig, SamplingConfig
from quire.config.engine import ModelSource


def run(source: ModelSource, chat: ChatConfig, sampling: SamplingConfig) -> int:
    messages: list[dict[str, str]] = []
    if chat.system_prompt:
        messages.append({"role": "system", "content": chat.system_prompt})

    async def ask(api: ApiClient, model: str, text: str) -> None:
        question = {"role": "user", "content": text}
        body = {"model": model, "messages": [*messages, question], "stream": True, **sampling.chosen()}
        answer = ""
        try:
            async for event in api.stream("/v1/chat/completions", body):
                for choice in event["choices"]:
                    part = choice["delta"].get("content") or ""
                    answer += part
                    print(part, end="", flush=True)
        finally:
            if answer:  # what was refused is no part of the conversation; what was cut short is
                messages.extend((question, {"role": "assistant", "content": answer}))
                print()

    return run_session(source, chat, sampling, ask)
