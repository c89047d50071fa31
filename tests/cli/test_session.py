"""``quire chat`` in a terminal (a pseudo one), against a server of the standard library whose answers are known."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from quire.cli.main import main

PATIENCE = 60.0


class Handler(BaseHTTPRequestHandler):
    """Answers with the conversation as it came; refuses 'bad', breaks off after 'cut'; starts on 'long', never ends."""

    def do_GET(self) -> None:
        self._reply(200, json.dumps({"data": [{"id": "echo"}]}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = [m["content"] for m in body["messages"]] if "messages" in body else [body["prompt"]]
        if said[-1] == "bad":
            self._reply(400, json.dumps({"error": {"message": "that is bad"}}))
            return
        self.send_response(200)
        if said[-1] == "cut":
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._event(f"[{'|'.join(said)}]", chunked=said[-1] == "cut")
        if said[-1] == "cut":
            return
        while said[-1] == "long" and not self.server.over.wait(0.01):
            pass
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, text: str, chunked: bool) -> None:
        choice = {"delta": {"content": text}, "text": text}
        event = f"data: {json.dumps({'choices': [choice]})}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event) if chunked else event)

    def _reply(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.over = threading.Event()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


class Terminal:
    """A process on a pseudo-terminal: what is typed into it, and what it shows."""

    def __init__(self, *argv: str) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "quire", *argv], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        self.shown = ""

    def expect(self, text: str) -> str:
        """Wait until ``text`` is shown; returns all up to and with it, and forgets that."""
        end = time.monotonic() + PATIENCE
        while text not in self.shown:
            assert time.monotonic() < end, f"{text!r} is not in {self.shown!r}"
            if select.select([self._ours], [], [], 0.1)[0]:
                self.shown += os.read(self._ours, 4096).decode()
        before, _, self.shown = self.shown.partition(text)
        return before + text

    def type(self, line: str) -> None:
        os.write(self._ours, line.encode() + b"\n")

    def interrupt(self) -> None:
        """What a terminal does at Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@pytest.fixture
def chat(url: str) -> Iterator[Terminal]:
    terminal = Terminal("chat", "--url", url)
    terminal.expect("> ")
    yield terminal
    terminal.close()


def test_an_answer_cut_short_is_kept_and_a_refused_question_is_not(chat: Terminal) -> None:
    chat.type("one")
    chat.expect("[one]")
    chat.expect("> ")
    chat.type("bad")
    chat.expect("error: that is bad")
    chat.expect("> ")
    chat.type("long")
    chat.expect("[one|[one]|long]")
    chat.interrupt()
    chat.expect("> ")
    chat.type("two")
    chat.expect("[one|[one]|long|[one|[one]|long]|two]")


def test_an_empty_line_leaves(chat: Terminal) -> None:
    chat.type("")
    assert chat.process.wait(PATIENCE) == 0


def test_an_interrupt_at_the_prompt_leaves(chat: Terminal) -> None:
    for _ in range(12):  # CPython heeds a signal between its prompt and its wait for input only when the next one comes
        chat.interrupt()
        with contextlib.suppress(subprocess.TimeoutExpired):
            chat.process.wait(PATIENCE / 12)
            break
    assert chat.process.poll() == 0


def test_sampling_out_of_range_is_refused_before_a_server_is_started(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "-q", "hi", "--temperature", "9"]) == 1
    assert capsys.readouterr().err == "quire chat: error: temperature must be a finite number in [0, 2].\n"


def test_a_refused_text_is_not_printed(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["complete", "--url", url, "-q", "bad"]) == 1
    assert capsys.readouterr() == ("", "quire complete: error: that is bad\n")
    assert main(["complete", "--url", url, "-q", "cut"]) == 1
    broken = f"quire complete: error: {url} broke off in the middle of its answer.\n"
    assert capsys.readouterr() == ("cut[cut]\n", broken)
    assert main(["complete", "--url", url, "-q", "good"]) == 0
    assert capsys.readouterr().out == "good[good]\n"


def test_lines_of_a_pipe_are_answered_without_a_prompt_sign(url: str) -> None:
    command = [sys.executable, "-m", "quire", "chat", "--url", url]
    done = subprocess.run(command, input="one\ntwo\n", capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[one]\n[one|[one]|two]\n", "")


def test_variables_of_a_server_of_the_user_s_own_don_t_count(
    monkeypatch: pytest.MonkeyPatch, smollm2_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model on the command line wins over the variable, and the server is where this process looks for it."""
    elsewhere = {"MODEL": "./nope.gguf", "UDS": "/nowhere/s", "PORT": "1", "API_KEY": "k", "SSL_KEYFILE": "/nowhere/k"}
    for name, value in elsewhere.items():
        monkeypatch.setenv(f"QUIRE_{name}", value)
    assert main(["complete", str(smollm2_path), "-q", "Two plus two is", "--max-tokens", "3", "--api-key", "k"]) == 0
    assert capsys.readouterr().out.startswith("Two plus two is")
