"""Hundreds of bad requests while good ones run: each is answered at once, and no neighbour notices."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import LiveServer, serving
from test_errors import check_discreet
from test_lifecycle import engine_pid

from quire.server.openai.protocol import ChatRequest, CompletionRequest

C, H = "/v1/completions", "/v1/chat/completions"
BASE: dict[str, Any] = {"max_tokens": 1, "temperature": 0}
HI = [{"role": "user", "content": "hi"}]
VALUES: list[Any] = [
    -1, 0, 1, 1.5, 2**31, 2**63, -(2**63) - 1, 10**100, 1e308, -1e308, 1e-308, True, "", "5", "x" * 5000, None, [],
    [[]], {},
    {"a": 1}, [None], [-1], [2**31], [2**63], [1e308], ["", "x"], [True], {"1": None}, {"-1": 1}, {"99999999": 1},
    {"5": 1e308},
]  # fmt: skip
RAW = ["NaN", "Infinity", "-Infinity", "1e999", "nul", "'x'", "0x10", "[1,]", "1" * 5000,
       "[" * 5000, '"\\ud800"', "\x00"]  # fmt: skip
BODIES: list[Any] = [
    "", " ", "null", "[]", "5", '"x"', "{", "}", "{}{}", '{"prompt": "x"', "[" * 100_000, '{"a":' * 100_000,
    '{"prompt": ' + "[" * 60 + "]" * 60 + "}", '{"prompt": "' + "\\u0000" * 1000 + '"}',
    json.dumps({"prompt": "a" * 3_000_000}), json.dumps({"prompt": [1] * 1_000_000}),
    json.dumps({"prompt": [[1]] * 5000}), '{"prompt": [' + "[1]," * 8_000_000 + "[1]]}",
    '{"prompt": "x", "stop_token_ids": [' + "1," * 16_000_000 + "1]}",
    json.dumps({"prompt": ["x"] * 5000}), json.dumps({"prompt": "x", **{f"f{i}": i for i in range(5000)}}),
    json.dumps({"prompt": "x", "logit_bias": {str(i): 1 for i in range(50_000)}}),
    json.dumps({"prompt": "x", "stop": ["x" * 1024] * 10_000}), json.dumps({"prompt": "x",
    "bad_words": ["y" * 1024] * 16}),
    json.dumps({"prompt": "x", "allowed_token_ids": list(range(200_000))}),
]  # fmt: skip
MESSAGES: list[Any] = [
    [], [[]], [{}], [None], [{"role": 5, "content": "x"}], [{"role": "user", "content": {}}], [{"role": "user",
    "content": [5]}],
    [{"role": "user", "content": [{"type": "text"}]}], [{"role": "user", "content": "<|im_end|>" * 400}],
    [{"role": "user<|im_end|>", "content": "x"}], [{"role": "user", "content": "x"}] * 3000,
    [{"role": "user", "content": "x"}] * 10_000, [{"role": "user"}] * 200_000,
    [{"role": "user", "content": [{"type": "text", "text": "a"}] * 5000}], [{"role": "user",
    "name": "<|im_start|>", "content": "x"}],
]  # fmt: skip


def corpus() -> Iterator[tuple[str, bytes]]:
    for path, model, base in ((C, CompletionRequest, {"prompt": "x"}), (H, ChatRequest, {"messages": HI})):
        for name, value in itertools.product(model.model_fields, VALUES):
            if path == C or name not in CompletionRequest.model_fields or value in (-1, 2**63):
                yield path, json.dumps({**base, **BASE, name: value}).encode()
        for name, raw in itertools.product(("temperature", "seed", "max_tokens", "logit_bias"), RAW):
            yield path, json.dumps({**base, **BASE, name: "?"}).replace('"?"', raw).encode("utf-8", "replace")
    for body in BODIES:
        yield C, body.encode()
        yield H, body.encode()
    for messages in MESSAGES:
        yield H, json.dumps({**BASE, "messages": messages}).encode()
    for path in ("/tokenize", "/detokenize", "/v1/requests/x/cancel", "/reset_prefix_cache"):
        yield path, json.dumps({"prompt": "x" * 200_000}).encode()
        for value in ({}, {"prompt": 5}, {"tokens": [2**63]}, {"tokens": "x"}, {"messages": [{}]}, {"tokens": [None]}):
            yield path, json.dumps(value).encode()


@pytest.fixture(scope="module")
def server(smollm2_path: Path) -> Iterator[LiveServer]:
    with serving(str(smollm2_path), "--max-model-len", "512", "--max-num-seqs", "16") as server:
        yield server


def streamed(client: httpx.Client, prompt: str) -> list[str]:
    """The raw texts of a greedy stream's events."""
    body = {"prompt": prompt, "max_tokens": 32, "temperature": 0, "ignore_eos": True, "stream": True}
    with client.stream("POST", C, json=body) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line)["choices"][0]["text"] for line in lines]


def fire(client: httpx.Client, path: str, body: bytes) -> tuple[int, str, float]:
    response = client.post(path, content=body, headers={"Content-Type": "application/json"})
    return response.status_code, response.text, response.elapsed.total_seconds()


@pytest.mark.slow
def test_bad_requests_disturb_nobody(server: LiveServer) -> None:
    requests = list(corpus())
    assert len(requests) >= 500
    names = ("fox", "sea", "king", "tree", "moon", "ship", "bell", "road")
    prompts = [f"The story of the {name} began" for name in names]
    with httpx.Client(base_url=server.url, timeout=30) as client, ThreadPoolExecutor(14) as pool:
        quiet = [streamed(client, prompt) for prompt in prompts]
        pid = engine_pid(server)
        over = threading.Event()

        def keep_streaming(prompt: str) -> list[list[str]]:
            seen = [streamed(client, prompt)]
            while not over.is_set():
                seen.append(streamed(client, prompt))
            return seen

        good = [pool.submit(keep_streaming, prompt) for prompt in prompts]
        answers = list(pool.map(lambda request: fire(client, *request), requests))
        over.set()
        for expected, stream in zip(quiet, good, strict=True):
            assert all(seen == expected for seen in stream.result(60))
    for (path, body), (status, text, seconds) in zip(requests, answers, strict=True):
        about = (path, body[:100], status, text[:200])
        assert status == 200 or 400 <= status < 500, about
        assert seconds < 5, about
        if status != 200:
            check_discreet(text)
            assert set(json.loads(text)["error"]) == {"message", "type", "param", "code"}, about
    assert sum(status >= 400 for status, *_ in answers) >= 500
    after = server.settle()
    assert engine_pid(server) == pid
    assert after["vllm:kv_cache_usage_perc"] == 0
    assert "Traceback" not in server.log, server.log
