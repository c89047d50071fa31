"""The official OpenAI client, unmodified, against a running server."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "server"))
from live_server import LiveServer, serving

QUESTION: Any = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
GREEDY: Any = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def server(smollm2_path: Path) -> Iterator[LiveServer]:
    with serving(str(smollm2_path), "--served-model-name", "smol", "--max-model-len", "1024") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def test_models(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["smol"]
    assert client.models.retrieve("smol").id == "smol"


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="smol", messages=QUESTION, **GREEDY)
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert "Paris" in (choice.message.content or "")
    assert choice.finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage is not None
    assert usage.prompt_tokens + usage.completion_tokens == usage.total_tokens
    again = client.chat.completions.create(model="smol", messages=QUESTION, **GREEDY)
    assert again.choices[0].message.content == choice.message.content
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    assert (again.usage.prompt_tokens_details.cached_tokens or 0) > 0


def test_chat_stream_equals_whole(client: openai.OpenAI) -> None:
    ask: Any = {"model": "smol", "messages": QUESTION, "temperature": 0, "max_tokens": 40}
    whole = client.chat.completions.create(**ask)
    stream = client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    *chunks, last = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert last.choices == []
    assert last.usage is not None
    assert whole.usage is not None
    assert last.usage.completion_tokens == whole.usage.completion_tokens


def test_chat_stream_helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="smol", messages=QUESTION, temperature=0, max_tokens=12) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    whole = client.chat.completions.create(model="smol", messages=QUESTION, **GREEDY)
    assert final.choices[0].message.content == whole.choices[0].message.content


def test_chat_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="smol", messages=QUESTION, logprobs=True, top_logprobs=3, temperature=0, max_tokens=4
    )
    content = answer.choices[0].logprobs
    assert content is not None
    assert content.content is not None
    tokens = content.content
    raw = b"".join(bytes(t.bytes or []) for t in tokens)
    assert raw.decode().startswith(answer.choices[0].message.content or "?")
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.logprob == max(t.logprob for t in token.top_logprobs)
        assert token.logprob <= 0


def test_completion_forms_of_prompt(client: openai.OpenAI) -> None:
    text = client.completions.create(model="smol", prompt="Once upon a time", **GREEDY).choices[0].text
    ids = openai.OpenAI(base_url=str(client.base_url).removesuffix("v1/"), api_key="none").post(
        "/tokenize", body={"prompt": "Once upon a time"}, cast_to=dict[str, Any]
    )["tokens"]  # fmt: skip
    assert client.completions.create(model="smol", prompt=ids, **GREEDY).choices[0].text == text
    several = client.completions.create(model="smol", prompt=["Once upon a time", "The sun"], **GREEDY)
    assert [c.index for c in several.choices] == [0, 1]
    assert several.choices[0].text == text
    of_ids = client.completions.create(model="smol", prompt=[ids, ids[:2]], **GREEDY)
    assert of_ids.choices[0].text == text


def test_completion_echo_and_logprobs(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="smol", prompt="The sun rises in the", echo=True, logprobs=2, **GREEDY)
    choice = answer.choices[0]
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.text_offset is not None
    assert choice.text.startswith("The sun rises in the")
    assert "".join(logprobs.tokens) == choice.text
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        assert choice.text.startswith(token, offset)
    assert logprobs.token_logprobs[0] is None
    assert all(p <= 0 for p in logprobs.token_logprobs[1:])


def test_n_and_seed(client: openai.OpenAI) -> None:
    def texts(**more: Any) -> list[str]:
        answer = client.completions.create(model="smol", prompt="A story:", max_tokens=12, temperature=1.2, **more)
        return [c.text for c in answer.choices]

    three = texts(n=3, seed=11)
    assert len(set(three)) == 3
    assert texts(n=3, seed=11) == three
    assert texts(n=1, seed=11) == three[:1]
    assert len({texts()[0] for _ in range(3)}) == 3


def test_stop_strings(client: openai.OpenAI) -> None:
    count: Any = {"model": "smol", "prompt": "Count: 1, 2, 3,", "max_tokens": 24, "temperature": 0}
    whole = client.completions.create(**count).choices[0].text
    stop = whole[6:10]
    cut = client.completions.create(**count, stop=[stop])
    assert cut.choices[0].text == whole[: whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_extensions_through_extra_body(client: openai.OpenAI) -> None:
    forced = client.completions.create(
        model="smol", prompt="x", max_tokens=5, extra_body={"allowed_token_ids": [260], "return_token_ids": True}
    )
    assert forced.choices[0].token_ids == [260] * 5  # type: ignore[attr-defined]
    long = client.completions.create(
        model="smol", prompt="x", max_tokens=5, extra_body={"ignore_eos": True, "min_tokens": 5, "top_k": 1}
    )
    assert long.usage is not None
    assert long.usage.completion_tokens == 5


def test_errors_become_the_client_s_exceptions(client: openai.OpenAI, server: LiveServer) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(model="smol", prompt="x", temperature=3)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="1024"):
        client.completions.create(model="smol", prompt=[1] * 1024)
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="nope", prompt="x")
    assert missing.value.param == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nope")
    with pytest.raises(openai.BadRequestError, match="tools"):
        client.chat.completions.create(
            model="smol", messages=QUESTION, tools=[{"type": "function", "function": {"name": "f"}}]
        )
    with pytest.raises(openai.BadRequestError):
        list(client.completions.create(model="smol", prompt="x", stream=True, max_tokens=0))


async def test_async_client(server: LiveServer, client: openai.OpenAI) -> None:
    import asyncio

    async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as other:

        async def streamed(prompt: str) -> str:
            stream = await other.completions.create(model="smol", prompt=prompt, stream=True, **GREEDY)
            return "".join([chunk.choices[0].text async for chunk in stream])

        prompts = [f"{name} is" for name in ("Water", "Fire", "Air", "Earth", "Iron", "Gold", "Salt", "Ice")]
        together = await asyncio.gather(*map(streamed, prompts))
    alone = [client.completions.create(model="smol", prompt=p, **GREEDY).choices[0].text for p in prompts]
    assert list(together) == alone
