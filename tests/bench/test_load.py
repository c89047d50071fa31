"""The client and the load generator against a real HTTP server (uvicorn) whose answers are known."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from quire.bench.load import Load, send_all
from quire.bench.workloads import Request as Work
from quire.cli.main import main
from quire.client import ApiClient, ServerError


class Server:
    """Streams as many tokens as asked for and notes how many requests were in flight at once."""

    def __init__(self) -> None:
        self.app = FastAPI()
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.active = self.most = 0
        self.app.get("/v1/models")(self.models)
        self.app.get("/health")(self.health)
        self.app.post("/v1/completions")(self.completions)

    async def health(self) -> dict[str, Any]:
        return {}

    async def models(self) -> dict[str, Any]:
        return {"data": [{"id": "first"}, {"id": "second"}]}

    async def completions(self, request: Request) -> Any:
        body = await request.json()
        self.bodies.append(body)
        self.keys.append(request.headers.get("authorization"))
        if body["max_tokens"] == 13:
            return JSONResponse({"error": {"message": "unlucky", "param": "max_tokens"}}, 400)
        return StreamingResponse(self.events(body), media_type="text/event-stream")

    async def events(self, body: dict[str, Any]) -> AsyncIterator[str]:
        self.active += 1
        self.most = max(self.most, self.active)
        try:
            for i in range(body["max_tokens"]):
                if i == 5 and body["max_tokens"] == 6:
                    yield 'data: {"error": {"message": "broke off"}}\n\n'
                    return
                yield ": a comment\n\n"
                yield f"data: {json.dumps({'choices': [{'text': 'é' * 3000}]})}\n\n"
                await asyncio.sleep(0.002)
            usage = {
                "prompt_tokens": len(body["prompt"]),
                "completion_tokens": body["max_tokens"],
                "prompt_tokens_details": {"cached_tokens": 1},
            }
            yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n"
            yield "data: [DONE]\n\n"
        finally:
            self.active -= 1


@pytest.fixture
def server() -> Iterator[tuple[Server, str]]:
    here = Server()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        running = uvicorn.Server(uvicorn.Config(here.app, log_level="error"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        while not running.started:
            time.sleep(0.01)
        yield here, f"http://127.0.0.1:{sock.getsockname()[1]}"
        running.should_exit = True
        thread.join(10)


def run_load(url: str, works: list[Work], load: Load, key: str | None = None) -> list[Any]:
    timings, _ = asyncio.run(send_all(ApiClient(url, key), "first", works, load))
    return timings


def test_timings_of_a_load(server: tuple[Server, str]) -> None:
    here, url = server
    works = [Work([i] * (i + 1), 4) for i in range(10)]
    timings = run_load(url, works, Load(concurrency=3), key="k")
    assert [t.error for t in timings] == [None] * 10
    assert [t.prompt_tokens for t in timings] == [i + 1 for i in range(10)]
    assert {t.output_tokens for t in timings} == {4}
    assert {t.cached_tokens for t in timings} == {1}
    assert all(len(t.arrivals) == 4 and t.start < t.arrivals[0] < t.end for t in timings)
    assert here.most <= 3
    assert set(here.keys) == {"Bearer k"}
    body = next(b for b in here.bodies if b["prompt"] == [2, 2, 2])
    assert (body["ignore_eos"], body["temperature"], body["stream"], body["model"]) == (True, 0, True, "first")


def test_failures_are_told_apart(server: tuple[Server, str]) -> None:
    timings = run_load(server[1], [Work([1], 13), Work([1], 6), Work([1], 2)], Load())
    assert [t.error for t in timings] == ["unlucky", "broke off", None]


def test_arrivals_follow_the_rate(server: tuple[Server, str]) -> None:
    timings = run_load(server[1], [Work([1], 1)] * 40, Load(rate=100.0, seed=1))
    span = max(t.start for t in timings) - min(t.start for t in timings)
    assert 0.2 < span < 2.0


def test_rates_run_one_after_another_and_infinity_is_all_at_once(server: tuple[Server, str], tmp_path: Path) -> None:
    here, url = server
    result = tmp_path / "rates.json"
    work = ["--workload", "random", "--num-prompts", "12", "--input-len", "4", "--output-len", "50"]
    rates = ["--request-rate", "inf", "40", "--result", str(result)]
    assert main(["bench", "serve", "--url", url, *work, *rates]) == 0
    assert here.most == 12
    assert list(json.loads(result.read_text())["runs"]) == ["random, all at once", "random, 40 requests/s"]


@pytest.mark.parametrize(("rate", "words"), [("nan", "a number"), ("0", "above 0"), ("-inf", "a number"), ("x", "'x'")])
def test_other_rates_are_refused(rate: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", f"--request-rate={rate}"]) != 0
    assert words in capsys.readouterr().err


def test_text_prompts_are_text(server: tuple[Server, str]) -> None:
    here, url = server
    run_load(url, [Work([4321] * 9, 1)], Load(text_prompts=True))
    assert isinstance(here.bodies[0]["prompt"], str)


def test_client_reads_and_probes(server: tuple[Server, str]) -> None:
    url = server[1]
    assert asyncio.run(ApiClient(url + "/v1").first_model()) == "first"
    assert asyncio.run(ApiClient(url).ready())
    with pytest.raises(ServerError, match="Not Found") as caught:
        asyncio.run(ApiClient(url).get("/nowhere"))
    assert caught.value.status == 404


def test_no_server_is_one_sentence() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    assert not asyncio.run(ApiClient(url).ready())
    with pytest.raises(ServerError, match="No proper answer"):
        asyncio.run(ApiClient(url).get("/v1/models"))
    with pytest.raises(ServerError, match="no http address"):
        asyncio.run(ApiClient("ftp://x").get("/v1/models"))
