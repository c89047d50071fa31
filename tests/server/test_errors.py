"""Every refusal: its status, the field it names, and its sentence, which never shows a path, a trace or the input."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest
from front_fakes import FakeEngine
from front_harness import events, http, live, post

from quire.engine.errors import EngineDead, QueueFull

C, H = "/v1/completions", "/v1/chat/completions"
PATHLIKE = re.compile(r"(^|[\s\"'(:])/(?!v1/)\w|0x[0-9a-f]{4}|Traceback|File \"|\.py\b")
SECRET = "s3cr3t-input"

# path, body, status, param, sentence
CASES: list[tuple[str, Any, int, str | None, str]] = [
    (C, [], 400, None, "The request needs a JSON object as its body."),
    (C, {}, 400, "prompt", "prompt is required."),
    (C, {"prompt": None}, 400, "prompt",
     "prompt must be a text, a list of token ids, or a non-empty list of one of these."),
    (C, {"prompt": []}, 400, "prompt",
     "prompt must be a text, a list of token ids, or a non-empty list of one of these."),
    (C, {"prompt": ["a", 1]}, 400, "prompt",
     "prompt must hold only texts, only token ids, or only lists of token ids."),
    (C, {"prompt": [[]]}, 400, "prompt", "The prompt must hold at least one token."),
    (C, {"prompt": "", "add_special_tokens": False}, 400, "prompt", "The prompt must hold at least one token."),
    (C, {"prompt": [260]}, 400, "prompt", "prompt must hold token ids from 0 to 259."),
    (C, {"prompt": [-1]}, 400, "prompt", "prompt must hold token ids from 0 to 259."),
    (C, {"prompt": "x" * 600}, 400, "prompt",
     "The prompt has 600 characters, more than the model's context of 512 tokens can hold. Shorten the prompt."),
    (C, {"prompt": "x" * 511}, 400, "prompt",
     "The prompt has 512 tokens; the model's context is 512 tokens and must hold the output as well. Shorten the prompt"
     " or raise --max-model-len."),
    (C, {"prompt": "x", "max_tokens": 600}, 400, "max_tokens",
     "The prompt has 2 tokens and max_tokens is 600; the model's context is 512 tokens. Lower max_tokens to 510 or"
     " shorten the prompt."),
    (H, {"messages": [{"role": "user", "content": "x"}] * 10_001}, 400, "messages",
     "messages must hold at most 10000 items."),
    (C, {"prompt": "x", "max_tokens": 0}, 400, "max_tokens", "max_tokens must be an integer from 1 to 2147483647."),
    (C, {"prompt": "x", "max_tokens": 1.5}, 400, "max_tokens", "max_tokens must be an integer."),
    (C, {"prompt": "x", "max_tokens": "3"}, 400, "max_tokens", "max_tokens must be an integer."),
    (C, {"prompt": "x", "max_tokens": True}, 400, "max_tokens", "max_tokens must be an integer."),
    (C, {"prompt": "x", "max_tokens": 10**30}, 400, "max_tokens",
     "max_tokens must be an integer from 1 to 2147483647."),
    (C, {"prompt": "x", "temperature": -0.1}, 400, "temperature", "temperature must be a finite number in [0, 2]."),
    (C, {"prompt": "x", "temperature": "hot"}, 400, "temperature", "temperature must be a number."),
    (C, {"prompt": "x", "temperature": True}, 400, "temperature", "temperature must be a number."),
    (C, {"prompt": "x", "top_p": 0}, 400, "top_p", "top_p must be a finite number in (0, 1]."),
    (C, {"prompt": "x", "top_k": -2}, 400, "top_k", "top_k must be an integer from -1 to 2147483647."),
    (C, {"prompt": "x", "n": 17}, 400, "n", "n must be an integer from 1 to 16."),
    (C, {"prompt": "x", "n": 2, "temperature": 0}, 400, "n",
     "n must be 1 when temperature is 0: greedy samples are all the same."),
    (C, {"prompt": ["x"] * 1025}, 400, "prompt", "prompt and n ask for more than 1024 completions (--max-prompts)."),
    (C, {"prompt": "x", "seed": 2**63}, 400, "seed",
     "seed must be an integer from -9223372036854775808 to 9223372036854775807."),
    (C, {"prompt": "x", "stop": 5}, 400, "stop", "stop must be a string or a list of strings."),
    (C, {"prompt": "x", "stop": [""]}, 400, "stop", "stop must hold non-empty strings of at most 1024 characters."),
    (C, {"prompt": "x", "stop": ["x"] * 17}, 400, "stop", "stop must be a list of at most 16 strings."),
    (C, {"prompt": "x", "stop_token_ids": [260]}, 400, "stop_token_ids",
     "stop_token_ids must hold token ids from 0 to 259."),
    (C, {"prompt": "x", "stop_token_ids": "5"}, 400, "stop_token_ids", "stop_token_ids must be a list of token ids."),
    (C, {"prompt": "x", "logit_bias": {"x": 1}}, 400, "logit_bias",
     'logit_bias must have token ids as its names, such as "50256".'),
    (C, {"prompt": "x", "logit_bias": {"260": 1}}, 400, "logit_bias", "logit_bias must hold token ids from 0 to 259."),
    (C, {"prompt": "x", "logit_bias": {"1": 101}}, 400, "logit_bias",
     "logit_bias values must be finite numbers in [-100, 100]."),
    (C, {"prompt": "x", "logit_bias": [1]}, 400, "logit_bias",
     "logit_bias must be an object that maps token ids to numbers."),
    (C, {"prompt": "x", "allowed_token_ids": []}, 400, "allowed_token_ids", "allowed_token_ids must not be empty."),
    (C, {"prompt": "x", "logprobs": 21}, 400, "logprobs",
     "logprobs must be at most 20 on this server (--max-logprobs)."),
    (C, {"prompt": "x", "logprobs": -1}, 400, "logprobs", "logprobs must be an integer from 0 to 2147483647."),
    (C, {"prompt": "x", "logprobs": True}, 400, "logprobs", "logprobs must be an integer."),
    (C, {"prompt": "x", "prompt_logprobs": 1, "stream": True}, 400, "prompt_logprobs",
     "prompt_logprobs can't be streamed: leave out stream."),
    (C, {"prompt": "x", "min_tokens": 20}, 400, "min_tokens", "min_tokens must be at most max_tokens (16)."),
    (C, {"prompt": "x", "stream": "yes"}, 400, "stream", "stream must be true or false."),
    (C, {"prompt": "x", "stream_options": {}}, 400, "stream_options", "stream_options needs stream to be true."),
    (C, {"prompt": "x", "stream": True, "stream_options": {"include_usage": 1}}, 400, "stream_options.include_usage",
     "stream_options.include_usage must be true or false."),
    (C, {"prompt": "x", "stream": True, "stream_options": 3}, 400, "stream_options",
     "stream_options must be an object."),
    (C, {"prompt": "x", "truncate_prompt_tokens": 0}, 400, "truncate_prompt_tokens",
     "truncate_prompt_tokens must be -1 or from 1 to 511 here."),
    (C, {"prompt": "x", "truncation_side": "up"}, 400, "truncation_side",
     "truncation_side must be 'left' or 'right'."),
    (C, {"prompt": "x", "request_id": "a b"}, 400, "request_id",
     "request_id must be 1 to 128 letters, digits or any of _ . : -"),
    (C, {"prompt": "x", "cache_salt": ""}, 400, "cache_salt", "cache_salt must not be empty."),
    (C, {"prompt": "x", "model": SECRET}, 404, "model", "This server has no such model; it serves fake."),
    (C, {"prompt": "x", "model": 5}, 400, "model", "model must be a string."),
    (C, {"prompt": "x", "priority": 1}, 400, "priority",
     "priority needs a server started with --scheduling-policy priority."),
    (C, {"prompt": "x", "priority": 1.5}, 400, "priority", "priority must be an integer."),
    *((C, {"prompt": "x", name: value}, 400, name, f"{name} is not supported yet: leave it out.")
      for name, value in {"suffix": SECRET, "best_of": 3, "use_beam_search": True, "prompt_embeds": "QUJD",
                          "guided_json": {}, "structured_outputs": {"regex": SECRET},
                          "response_format": {"type": "json_object"}}.items()),
    (H, {}, 400, "messages", "messages is required."),
    (H, {"messages": []}, 400, "messages", "messages must not be empty."),
    (H, {"messages": "hi"}, 400, "messages", "messages must be a list."),
    (H, {"messages": [5]}, 400, "messages[0]", "messages[0] must be an object."),
    (H, {"messages": [{"content": "x"}]}, 400, "messages[0].role", "messages[0].role is required."),
    (H, {"messages": [{"role": SECRET, "content": "x"}]}, 400, "messages[0].role",
     "messages[0].role must be one of system, developer, user, assistant."),
    (H, {"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0].role",
     "messages[0].role tool is not supported yet: tools are missing."),
    *((H, {"messages": [{"role": "user", "content": "x"}, message]}, 400, "messages[1].content",
       "messages[1].content is required.")
      for message in ({"role": "user"}, {"role": "user", "content": None}, {"role": "developer"})),
    (H, {"messages": [{"role": "user", "content": 5}]}, 400, "messages[0].content",
     "messages[0].content must be a text or a list of text parts."),
    (H, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": SECRET}}]}]}, 400,
     "messages[0].content", "messages[0].content has a part of type image_url, which is not supported yet: send text."),
    (H, {"messages": [{"role": "user", "content": [{"type": SECRET}]}]}, 400, "messages[0].content",
     'messages[0].content must hold only parts of the form {"type": "text", "text": ...}.'),
    (H, {"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}]}, 400, "messages[0].tool_calls",
     "messages[0].tool_calls is not supported yet: tools are missing."),
    (H, {"messages": [{"role": "user", "content": "x"}], "top_logprobs": 2}, 400, "top_logprobs",
     "top_logprobs needs logprobs to be true."),
    (H, {"messages": [{"role": "user", "content": "x"}], "logprobs": True, "top_logprobs": 21}, 400, "top_logprobs",
     "top_logprobs must be at most 20 on this server (--max-logprobs)."),
    (H, {"messages": [{"role": "user", "content": "x"}], "max_completion_tokens": 0}, 400, "max_completion_tokens",
     "max_completion_tokens must be an integer from 1 to 2147483647."),
    (H, {"messages": [{"role": "user", "content": "x" * 505}]}, 400, "messages",
     "The prompt has 522 characters, more than the model's context of 512 tokens can hold. Shorten the prompt."),
    (H, {"messages": [{"role": "user", "content": "x"}], "continue_final_message": True, "add_generation_prompt": True},
     400, "continue_final_message", "continue_final_message needs add_generation_prompt to be false."),
    (H, {"messages": [{"role": "user", "content": "x"}], "chat_template": SECRET}, 400, "chat_template",
     "chat_template is not supported yet: leave it out."),
    (H, {"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"a": []}}, 400,
    "chat_template_kwargs",
     "chat_template_kwargs must hold only strings, numbers, true, false or null."),
    (H, {"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function"}]}, 400, "tools",
     "tools is not supported yet: leave it out."),
    ("/tokenize", {}, 400, "prompt", "Send either prompt or messages."),
    ("/tokenize", {"prompt": "x", "messages": []}, 400, "prompt", "Send either prompt or messages."),
    ("/detokenize", {}, 400, "tokens", "tokens is required."),
    ("/detokenize", {"tokens": [2**31]}, 400, "tokens", "tokens must hold token ids from 0 to 259."),
    ("/detokenize", {"tokens": ["a"]}, 400, "tokens", "tokens must be a list of token ids, each an integer."),
    ("/nope", {}, 404, None, "There is no such route."),
    ("/" + "x" * 5000, {}, 404, None, "There is no such route."),
    ("/v1/embeddings", {}, 404, None, "There is no such route."),
    ("/chat/completions", {}, 404, None, "There is no such route. Did you mean /v1/chat/completions?"),
    ("/models", {}, 404, None, "There is no such route. Did you mean /v1/models?"),
    ("/v1/v1/completions", {}, 404, None, "There is no such route. Did you mean /v1/completions?"),
    ("/v1/models", {}, 405, None, "This route does not take this method."),
    ("/v1/requests/none/cancel", {}, 404, "request_id", "No request of that id is running."),
]  # fmt: skip


@pytest.fixture(scope="module")
def url() -> Any:
    with live() as front:
        yield front.url


def check_error(response: httpx.Response, status: int, param: str | None, message: str) -> None:
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert (body["error"]["message"], body["error"]["param"], body["error"]["code"]) == (message, param, status)
    check_discreet(response.text)


def check_discreet(text: str) -> None:
    assert len(text) < 2048
    assert not PATHLIKE.search(text), text
    assert SECRET not in text


@pytest.mark.parametrize(("path", "body", "status", "param", "message"), CASES)
def test_refusal(url: str, path: str, body: Any, status: int, param: str | None, message: str) -> None:
    check_error(post(url, path, body), status, param, message)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "The request needs a JSON object as its body."),
        (b"{", "The body is not valid JSON (UTF-8; NaN and Infinity are not JSON numbers)."),
        (b'{"prompt": "x", "temperature": NaN}',
        "The body is not valid JSON (UTF-8; NaN and Infinity are not JSON numbers)."),
        (b'{"prompt": "x", "temperature": -Infinity}',
         "The body is not valid JSON (UTF-8; NaN and Infinity are not JSON numbers)."),
        (b'{"prompt": "x", "temperature": 1e999}',
         "The body is not valid JSON (UTF-8; NaN and Infinity are not JSON numbers)."),
        (b'{"prompt": "\xff"}', "The body is not valid JSON (UTF-8; NaN and Infinity are not JSON numbers)."),
        (b'{"prompt": "\\ud800"}', "The body is not valid JSON (UTF-8; NaN and Infinity are not JSON numbers)."),
        (b'{"prompt": ' + b"[" * 65 + b"]" * 65 + b"}", "The body's JSON is nested deeper than 64 levels."),
        (b"[" * 100_000 + b"]" * 100_000, "The body's JSON is nested deeper than 64 levels."),
    ],
)  # fmt: skip
def test_malformed_json(url: str, raw: bytes, message: str) -> None:
    response = http.post(url + C, content=raw, headers={"Content-Type": "application/json"})
    check_error(response, 400, None, message)


@pytest.mark.parametrize("unit", [b"1,", b"[],", b"{},"])
def test_json_of_too_many_values(url: str, unit: bytes) -> None:
    response = http.post(
        url + C, content=b'{"prompt": [' + unit * 1_000_001 + b"1]}", headers={"Content-Type": "application/json"}
    )
    message = "The body holds more than 1000000 values or 250000 lists and objects: divide it among several requests."
    check_error(response, 413, None, message)


@pytest.mark.parametrize("kind", ["text/plain", "", "application/x-www-form-urlencoded", "application/json2"])
def test_other_content_types(url: str, kind: str) -> None:
    response = http.post(url + C, content=b'{"prompt": "x"}', headers={"Content-Type": kind})
    check_error(response, 415, None, "The body must be sent with Content-Type application/json.")


def test_json_with_a_charset_is_json(url: str) -> None:
    kind = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert http.post(url + C, content=b'{"prompt": "x"}', headers=kind).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_full_queue(stream: bool) -> None:
    engine = FakeEngine()
    engine.fail_with = QueueFull("The server's queue is full (1024 requests); try again later.", 6.6)
    with live(engine) as front:
        for body in ({"prompt": "x"}, {"prompt": ["x", "y"], "n": 2}):
            response = post(front.url, C, {**body, "stream": stream})
            check_error(response, 429, None, "The server's queue is full (1024 requests); try again later.")
            assert response.headers["retry-after"] == "7"
        assert not front.service.running
        assert "vllm:request_success_total{" not in http.get(front.url + "/metrics").text


@pytest.mark.parametrize("stream", [False, True])
def test_dead_engine(stream: bool) -> None:
    engine = FakeEngine()
    engine.fail_with, engine.dead = EngineDead("The engine has ended."), "The engine has ended."
    with live(engine) as front:
        check_error(post(front.url, C, {"prompt": "x", "stream": stream}), 503, None, "The engine has ended.")
        assert http.get(front.url + "/health").status_code == 503
        check_error(http.get(front.url + "/ready"), 503, None, "The engine has ended.")


@pytest.mark.parametrize("n", [1, 3])
def test_error_inside_a_stream_is_an_event_before_done(n: int) -> None:
    engine = FakeEngine()
    engine.fail_after = 3
    with live(engine) as front:
        *chunks, last = events(post(front.url, C, {"prompt": "x", "stream": True, "n": n}))
        assert len(chunks) >= 3
        assert last["error"]["code"] == 500
        check_discreet(json.dumps(last))
        whole = post(front.url, C, {"prompt": "x", "n": n})
        check_error(whole, 500, None, "The server failed on this request; its log says why.")
        assert not engine.running
        assert f'finished_reason="error",model_name="fake"}} {2 * n}.0' in http.get(front.url + "/metrics").text


def test_the_unforeseen_is_logged_but_not_told(caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine()
    engine.fail_with = ZeroDivisionError(f"{SECRET} in /etc/passwd")
    with live(engine) as front:
        response = post(front.url, C, {"prompt": "x"})
        check_error(response, 500, None, "The server failed on this request; its log says why.")
        assert SECRET in caplog.text
        assert post(front.url, "/tokenize", {"prompt": "x"}).status_code == 200


def test_body_limit() -> None:
    with live(max_body_bytes=2000) as front:
        message = "The body is larger than 2000 bytes, this server's limit (--max-body-bytes)."
        check_error(post(front.url, C, {"prompt": "x" * 2001}), 413, None, message)

        def pieces() -> Any:
            yield from [b'{"prompt": "', *[b"x" * 100] * 30, b'"}']

        response = http.post(front.url + C, content=pieces(), headers={"Content-Type": "application/json"})
        check_error(response, 413, None, message)
        assert post(front.url, C, {"prompt": "x"}).status_code == 200


def test_huge_heads_are_refused_at_once(url: str) -> None:
    message = "The request line and headers are larger than 65536 bytes."
    check_error(http.get(url + "/health", headers={"X-Big": "x" * 70_000}), 431, None, message)
    check_error(http.get(url + "/health", headers={f"X-{i}": "x" * 100 for i in range(700)}), 431, None, message)
    check_error(http.get(url + "/" + "x" * 60_000, headers={"X-Big": "x" * 10_000}), 431, None, message)


def test_endless_header_is_cut_off(url: str) -> None:
    import socket

    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nX-Big: ")
        with pytest.raises(OSError):
            for _ in range(1000):
                sock.sendall(b"x" * 65536)


def test_what_is_not_http_gets_the_same_shape(url: str) -> None:
    import socket

    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        sock.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        answer = sock.recv(4096)
    assert answer.startswith(b"HTTP/1.1 400")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == 400
