"""A real server in a process of its own, as a user starts it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

_READY = re.compile(r"ready in [\d.]+ s: .* at (http://[^/]+)/v1")
_SRC = Path(__file__).parents[2] / "src"


class LiveServer:
    """``url`` without ``/v1``; ``lines`` is what it has logged."""

    def __init__(self, *arguments: str, module: str = "quire serve", **environment: str) -> None:
        name, *command = module.split()
        env = {**os.environ, "PYTHONPATH": str(_SRC), **environment}
        self.process = subprocess.Popen(
            [sys.executable, "-m", name, *command, "--port", "0", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        self.lines: list[str] = []
        self.url = ""
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stderr or ():
            self.lines.append(line.rstrip())
            if match := _READY.search(line):
                self.url = match[1]
                self._ready.set()
        self._ready.set()

    def wait_ready(self, seconds: float = 60) -> None:
        assert self._ready.wait(seconds), self.log
        assert self.url, self.log

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = 30) -> int:
        status = self.process.wait(seconds)
        self._reader.join(5)
        return status

    def stop(self) -> None:
        if self.process.poll() is None:
            self.signal()
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def metrics(self) -> dict[str, float]:
        """Sums of all samples of each metric."""
        found: dict[str, float] = {}
        for line in httpx.get(self.url + "/metrics", headers=self._headers()).text.splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                key = name.partition("{")[0]
                found[key] = found.get(key, 0.0) + float(value)
        return found

    def _headers(self) -> dict[str, str]:
        return {}

    def settle(self, seconds: float = 10) -> dict[str, float]:
        """Wait until no request runs or waits; returns the metrics then."""
        deadline = time.monotonic() + seconds
        while True:
            now = self.metrics()
            if now["vllm:num_requests_running"] == now["vllm:num_requests_waiting"] == 0:
                return now
            assert time.monotonic() < deadline, now
            time.sleep(0.1)


@contextmanager
def serving(*arguments: str, **environment: str) -> Iterator[LiveServer]:
    server = LiveServer(*arguments, **environment)
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop()
