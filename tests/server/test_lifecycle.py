"""A whole server as a user runs it: start, readiness, signals, the engine's death, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import LiveServer, serving

STORY: Any = {"prompt": "Once upon a time", "temperature": 0, "ignore_eos": True}
SMALL = ("--max-model-len", "512", "--max-num-seqs", "8")


def children(pid: int) -> list[int]:
    return [int(p) for t in Path(f"/proc/{pid}/task").iterdir() for p in (t / "children").read_text().split()]


def engine_pid(server: LiveServer) -> int:
    """The child that does the work: the one with the largest memory."""

    def resident(pid: int) -> int:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1])

    return max(children(server.process.pid), key=resident)


class Stream(threading.Thread):
    """Reads a streamed completion; ``first`` is set with its first event."""

    def __init__(self, server: LiveServer, **body: Any) -> None:
        super().__init__(daemon=True)
        self._url, self._body = server.url + "/v1/completions", {**STORY, "stream": True, **body}
        self.first = threading.Event()
        self.lines: list[str] = []
        self.start()
        assert self.first.wait(30)

    def run(self) -> None:
        with httpx.stream("POST", self._url, json=self._body, timeout=60) as response:
            for line in response.iter_lines():
                if line:
                    self.lines.append(line.removeprefix("data: "))
                    self.first.set()

    def finish(self) -> tuple[str, Any]:
        """The text, and the last event before [DONE]."""
        self.join(60)
        assert self.lines[-1] == "[DONE]", self.lines[-3:]
        events = [json.loads(line) for line in self.lines[:-1]]
        return "".join(e["choices"][0]["text"] for e in events if e.get("choices")), events[-1]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def whole(server: LiveServer, **body: Any) -> str:
    answer = httpx.post(server.url + "/v1/completions", json={**STORY, **body}, timeout=60).json()
    return str(answer["choices"][0]["text"])


def test_front_imports_no_torch() -> None:
    modules = (
        "quire.server.app, quire.server.http, quire.server.lifecycle, quire.text.front, quire.engine.process, "
        "quire.model.support"
    )
    code = f"import sys, {modules}; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    src = str(Path(__file__).parents[2] / "src")
    environment = {**os.environ, "PYTHONPATH": src}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert out.stdout.strip() == "[]", out.stderr


def test_start_tells_its_phase_then_where_its_time_went(smollm2_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = LiveServer(str(smollm2_path), *SMALL, "--port", str(port))
    seen: list[tuple[int, str]] = []
    try:
        while not server.url:
            assert server.process.poll() is None, server.log
            try:
                response = httpx.get(f"http://127.0.0.1:{port}/ready", timeout=5)
                seen.append((response.status_code, response.text))
            except httpx.ConnectError:
                assert not seen  # once the socket listens, every request is answered
            time.sleep(0.05)
        assert {status for status, _ in seen} <= {503, 200}
        assert any("starting" in text for _, text in seen)
        assert httpx.get(server.url + "/ready").status_code == 200
        starts, took, ready = server.lines
        assert f"starts {smollm2_path}" in starts
        parts = took.split("Start-up: ")[1].rstrip(".").split(", ")
        total = float(ready.split("ready in ")[1].split()[0])
        assert sum(float(p.split()[-2]) for p in parts) == pytest.approx(total, abs=0.2)
        assert {"launch", "loading weights"} <= {p.rpartition(" ")[0].rpartition(" ")[0] for p in parts}
        assert server.metrics()["quire:startup_seconds"] == pytest.approx(total, abs=0.2)
    finally:
        server.stop()


def test_signals(smollm2_path: Path) -> None:
    """SIGTERM lets requests finish and turns new ones away; a second one ends them with an error event."""
    server = LiveServer(str(smollm2_path), *SMALL)
    try:
        server.wait_ready()
        pids = children(server.process.pid)
        assert pids
        expected = whole(server, max_tokens=40)
        patient = Stream(server, max_tokens=40)
        endless = Stream(server, max_tokens=480)
        server.signal()
        late = httpx.post(server.url + "/v1/completions", json=STORY, timeout=10)
        assert late.status_code == 503
        assert late.headers["connection"] == "close"
        assert httpx.get(server.url + "/ready").status_code == 503
        assert patient.finish()[0] == expected
        server.signal()
        _, last = endless.finish()
        assert last["error"]["code"] == 503
        assert server.wait(10) == 0
        assert all(map(gone, pids))
        assert "Traceback" not in server.log
    finally:
        server.stop()


def test_shutdown_timeout(smollm2_path: Path) -> None:
    with serving(str(smollm2_path), *SMALL, "--shutdown-timeout", "0.2") as server:
        endless = Stream(server, max_tokens=480)
        server.signal(signal.SIGINT)
        assert endless.finish()[1]["error"]["message"] == "The server is shutting down."
        assert server.wait(10) == 0


def test_ctrl_c_reaches_only_the_front(smollm2_path: Path) -> None:
    """A terminal sends it to all of the foreground's session: the engine, which may still import, is in another."""
    server = LiveServer(str(smollm2_path), *SMALL)
    try:
        front, deadline = server.process.pid, time.monotonic() + 10
        while not (pids := children(front)) or any(os.getsid(pid) == os.getsid(front) for pid in pids):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        server.stop()


@pytest.mark.parametrize("seconds", [0.2, 0.8, 1.5])
def test_signal_while_starting(smollm2_path: Path, seconds: float) -> None:
    server = LiveServer(str(smollm2_path), *SMALL)
    time.sleep(seconds)
    pids = children(server.process.pid)
    server.signal()
    assert server.wait(15) in (0, -signal.SIGTERM)
    assert "xception" not in server.log
    deadline = time.monotonic() + 10
    while not all(map(gone, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def server(smollm2_path: Path) -> Iterator[LiveServer]:
    with serving(str(smollm2_path), *SMALL, "--no-enable-prefix-caching") as server:
        yield server


@pytest.mark.parametrize("stream", [False, True])
def test_clients_that_leave_free_their_pages(server: LiveServer, stream: bool) -> None:
    before = server.settle()
    leavers = [threading.Thread(target=leave, args=(server, stream, 0.1 + i / 20)) for i in range(12)]
    for leaver in leavers:  # more than there are slots, so that some leave the queue
        leaver.start()
    for leaver in leavers:
        leaver.join()
    after = server.settle(5)
    assert after["quire:kv_pages_free"] == after["quire:kv_pages_total"] > 0
    assert after["quire:client_disconnects_total"] - before.get("quire:client_disconnects_total", 0) == 12
    assert whole(server, max_tokens=4)


def leave(server: LiveServer, stream: bool, seconds: float) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps({**STORY, "max_tokens": 480, "stream": stream}).encode()
    with socket.create_connection((host, int(port))) as sock:
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        sock.sendall(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        time.sleep(seconds)


def test_overload_is_refused_at_once(smollm2_path: Path) -> None:
    with serving(str(smollm2_path), "--max-num-seqs", "1", "--max-num-queued-reqs", "2") as server:
        running = Stream(server, max_tokens=200)
        url, body = server.url + "/v1/completions", {**STORY, "max_tokens": 2}
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: httpx.post(url, json=body, timeout=60), range(8)))
        assert sorted(a.status_code for a in answers) == [200] * 2 + [429] * 6
        refused = next(a for a in answers if a.status_code == 429)
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["type"] == "RateLimitError"
        many = httpx.post(url, json={**body, "prompt": ["x"] * 9}, timeout=60)
        assert many.status_code == 429  # all or nothing
        assert len(running.finish()[0]) > 200
        assert server.settle()["quire:rejected_requests_total"] == 7


def test_streams_outlive_their_engine(server: LiveServer) -> None:
    expected = whole(server, max_tokens=100)
    stream = Stream(server, max_tokens=100)
    os.kill(engine_pid(server), signal.SIGKILL)
    assert httpx.get(server.url + "/health").status_code == 200
    assert stream.finish()[0] == expected
    assert whole(server, max_tokens=100) == expected
    assert httpx.get(server.url + "/ready").status_code == 200


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("/no/such/model.gguf",), 1, "There is no model"),
        (("--memory", "1MB"), 1, "memory"),
        (("--host", "0.0.0.0"), 2, "--api-key"),
        (("--chat-template", "/no/such/template"), 2, "--chat-template"),
        (("--ssl-certfile", "/no/cert", "--ssl-keyfile", "/no/key"), 2, "--ssl-certfile"),
    ],
)
def test_refusing_to_start(arguments: tuple[str, ...], status: int, message: str, smollm2_path: Path) -> None:
    server = LiveServer(*([] if arguments[0].startswith("/") else [str(smollm2_path)]), *arguments)
    assert server.wait(30) == status, server.log
    assert message in server.log
    assert "Traceback" not in server.log
    assert len(server.lines) <= 3, server.log


def test_an_architecture_that_cannot_run_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba", "num_hidden_layers": 2}))
    server = LiveServer(str(tmp_path))
    assert server.wait(30) == 1, server.log
    assert "'mamba' has no family of Quire's own" in server.lines[-1]
    assert len(server.lines) == 2, server.log


def test_vllm_s_way_to_start_and_keys_from_the_environment(smollm2_path: Path) -> None:
    server = LiveServer(
        "--model", str(smollm2_path), *SMALL, module="quire.entrypoints.openai.api_server", VLLM_API_KEY="top-secret"
    )  # fmt: skip
    try:
        server.wait_ready()
        assert httpx.get(server.url + "/v1/models").status_code == 401
        listed = httpx.get(server.url + "/v1/models", headers={"Authorization": "Bearer top-secret"}).json()
        assert "/" not in listed["data"][0]["id"]
        by_path = {**STORY, "model": str(smollm2_path), "max_tokens": 2}
        answer = httpx.post(
            server.url + "/v1/completions", json=by_path, headers={"Authorization": "Bearer top-secret"}, timeout=30
        )
        assert answer.status_code == 200
        assert "top-secret" not in server.log
    finally:
        server.stop()
