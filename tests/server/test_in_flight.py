"""What becomes of a request while it runs: its client leaves, it is cancelled, the server drains."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from front_fakes import FakeEngine
from front_harness import LiveFront, events, http, live, post

from quire.server.service import ModelCard

LONG: Any = {"prompt": "x", "max_tokens": 400, "temperature": 0}


def eventually(condition: Callable[[], object], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def raw_post(front: LiveFront, body: bytes) -> socket.socket:
    host, port = front.url.removeprefix("http://").split(":")
    sock = socket.create_connection((host, int(port)), timeout=10)
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return sock


@pytest.mark.parametrize(
    "extra", [{}, {"stream": True}, {"n": 3, "temperature": 1}, {"prompt": ["x", "y"], "stream": True}]
)
@pytest.mark.parametrize("started", [True, False])
def test_a_client_that_leaves_frees_the_engine(extra: dict[str, Any], started: bool) -> None:
    """Whether its answer has begun (``started``) or it still waits in the queue."""
    import json

    engine = FakeEngine(delay=0.01 if started else 60)
    with live(engine) as front:
        sequences = 3 if "n" in extra else 2 if "prompt" in extra else 1
        sock = raw_post(front, json.dumps({**LONG, **extra}).encode())
        eventually(lambda: len(engine.running) == sequences)
        if started:
            time.sleep(0.05)
        sock.close()
        eventually(lambda: not engine.running)
        assert len(engine.aborted) == sequences
        eventually(lambda: not front.service.running and not front.service.in_flight)
        metrics = http.get(front.url + "/metrics").text
        assert 'quire:client_disconnects_total{engine="0",model_name="fake"} 1.0' in metrics
        assert f'finished_reason="abort",model_name="fake"}} {sequences}.0' in metrics
        assert post(front.url, "/v1/models", None).status_code == 405


def test_client_that_closes_its_side_in_the_middle_of_the_body() -> None:
    engine = FakeEngine()
    with live(engine) as front:
        host, port = front.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as sock:
            sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                         b"Content-Length: 1000\r\n\r\n{\"prompt\"")  # fmt: skip
        eventually(lambda: not front.service.in_flight)
        assert not engine.seen
        assert post(front.url, "/v1/completions", {"prompt": "x"}).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 2])
def test_cancel_gives_what_there_is(stream: bool, n: int) -> None:
    engine = FakeEngine(delay=0.01)
    with live(engine) as front:
        answers: list[httpx.Response] = []
        body = {**LONG, "stream": stream, "n": n, "temperature": 1, "request_id": "a"}
        thread = threading.Thread(target=lambda: answers.append(post(front.url, "/v1/completions", body)))
        thread.start()
        eventually(lambda: len(engine.running) == n)
        time.sleep(0.1)
        assert post(front.url, "/v1/requests/cmpl-a/cancel", None).status_code == 200
        thread.join(10)
        if stream:
            chunks = [c["choices"][0] for c in events(answers[0])]
            reasons = [c["finish_reason"] for c in chunks if c["finish_reason"]]
            text = "".join(c["text"] for c in chunks)
        else:
            reasons = [c["finish_reason"] for c in answers[0].json()["choices"]]
            text = "".join(c["text"] for c in answers[0].json()["choices"])
        assert reasons == ["abort"] * n
        assert 0 < len(text) < 400 * n
        assert post(front.url, "/v1/requests/cmpl-a/cancel", None).status_code == 404


@pytest.mark.parametrize("stream", [False, True])
def test_failing_what_is_in_flight(stream: bool) -> None:
    """At the end of a drain: an error event in a stream, a 503 otherwise."""
    engine = FakeEngine(delay=0.01)
    with live(engine) as front:
        answers: list[httpx.Response] = []
        body = {**LONG, "stream": stream}
        thread = threading.Thread(target=lambda: answers.append(post(front.url, "/v1/completions", body)))
        thread.start()
        eventually(lambda: engine.running)
        time.sleep(0.05)
        front.call(lambda: front.service.fail_all("The server is shutting down."))
        thread.join(10)
        error = events(answers[0])[-1]["error"] if stream else answers[0].json()["error"]
        assert (error["code"], error["message"]) == (503, "The server is shutting down.")
        assert stream or answers[0].status_code == 503


def test_before_it_is_ready_and_while_it_drains_the_server_says_so() -> None:
    with live(ready=False) as front:
        front.service.phase = "starting (loading weights)"
        for path in ("/ready", "/health", "/v1/models"):
            response = http.get(front.url + path)
            assert response.status_code == 503
            assert "loading weights" in response.json()["error"]["message"]
        early = post(front.url, "/v1/completions", {"prompt": "x"})
        assert early.status_code == 503
        assert early.headers["connection"] == "close"
        assert http.get(front.url + "/metrics").status_code == 200
        front.open()
        assert http.get(front.url + "/ready").status_code == 200
        front.service.phase = "draining"
        assert http.get(front.url + "/ready").status_code == 503
        assert http.get(front.url + "/health").status_code == 200
        assert post(front.url, "/v1/completions", {"prompt": "x"}).status_code == 503


def test_what_runs_is_answered_while_the_server_drains() -> None:
    engine = FakeEngine(delay=0.01)
    with live(engine) as front:
        answers: list[httpx.Response] = []
        body = {"prompt": [104, 105], "echo": True, "logprobs": 1, "max_tokens": 20}
        thread = threading.Thread(target=lambda: answers.append(post(front.url, "/v1/completions", body)))
        thread.start()
        eventually(lambda: engine.running)
        front.service.phase = "draining"
        thread.join(10)
        assert answers[0].json()["choices"][0]["text"].startswith("hi")


def test_silence_is_filled_with_comments() -> None:
    with live(FakeEngine(delay=0.15), sse_keep_alive_interval=0.05) as front:
        text = post(front.url, "/v1/completions", {"prompt": "x", "max_tokens": 2, "stream": True}).text
        assert text.startswith(": keep-alive\n\n")
        assert text.endswith("data: [DONE]\n\n")
        assert text.count("data: {") == 2


def test_slow_readers_don_t_hold_up_others() -> None:
    engine = FakeEngine()
    with live(engine) as front:
        slow = raw_post(front, b'{"prompt": "x", "max_tokens": 500, "stream": true}')
        started = time.monotonic()
        assert post(front.url, "/v1/completions", LONG).status_code == 200
        assert time.monotonic() - started < 5
        slow.close()


def test_counters_agree_with_what_clients_saw() -> None:
    with live() as front:
        for body in [{"prompt": "x", "max_tokens": 4}] * 3 + [{"prompt": "xyz", "max_tokens": 2, "n": 2}]:
            post(front.url, "/v1/completions", body)
        post(front.url, "/v1/completions", {"prompt": "x", "n": 99})
        text = http.get(front.url + "/metrics").text
        labels = 'engine="0"'
        for line in (
            f'vllm:request_success_total{{{labels},finished_reason="length",model_name="fake"}} 5.0',
            f'vllm:request_prompt_tokens_sum{{{labels},model_name="fake"}} 14.0',
            f'vllm:request_generation_tokens_sum{{{labels},model_name="fake"}} 16.0',
            f'vllm:request_params_n_count{{{labels},model_name="fake"}} 4.0',
            f'quire:rejected_requests_total{{{labels},model_name="fake",status="400"}} 1.0',
            f'http_requests_total{{{labels},handler="/v1/completions",method="POST",model_name="fake",status="200"}} 4',
            f'quire:startup_seconds{{{labels},model_name="fake",phase="load"}} 0.1',
        ):
            assert line in text, line


def test_names_of_a_model(tmp_path: Path) -> None:
    folder = tmp_path / "Model-0.5B"
    folder.mkdir()
    (tmp_path / "m-1.5.gguf").touch()
    assert ModelCard.of(str(folder), ()).names == ("Model-0.5B",)
    assert ModelCard.of(f"{folder}/", ()).names == ("Model-0.5B",)
    assert ModelCard.of(str(tmp_path / "m-1.5.gguf"), ()).names == ("m-1.5",)
    assert ModelCard.of("pypi:small", ()).names == ("small",)
    hub = ModelCard.of("org/Model", ())
    assert hub.names == ("org/Model",)
    served = ModelCard.of("org/Model", ("a", "b"))
    assert served.names == ("a", "b")
    assert served.accepted == {"a", "b"}
    assert ModelCard.of("pypi:small", ()).accepted == {"small", "pypi:small"}
