"""Fetching from a hub: the hub's own client against a server that holds one repository."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "c" * 40
WANTED = {"config.json": b"{}", "model.safetensors": os.urandom(5000), "tokenizer.json": b"[]"}
FILES = WANTED | {"pytorch_model.bin": b"never", "original/model.safetensors": b"never", "q4.gguf": os.urandom(3000)}


class Hub(BaseHTTPRequestHandler):
    """The routes that a download takes; ``asked`` notes what was asked for and with which token."""

    asked: list[tuple[str, str | None]]

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.asked.append((self.path, self.headers.get("authorization")))
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/org/name/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in FILES.items()
            ]
            self._reply(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
        elif path.startswith("/api/models/org/name"):
            if path.rpartition("/")[2] not in ("name", "main", COMMIT):
                self._refuse("RevisionNotFound")
                return
            siblings = [{"rfilename": name} for name in FILES]
            body = {"id": "org/name", "modelId": "org/name", "sha": COMMIT, "siblings": siblings, "private": False}
            self._reply(200, json.dumps(body).encode(), {"Content-Type": "application/json"})
        elif path.startswith("/org/name/resolve/"):
            name = path.removeprefix("/org/name/resolve/").partition("/")[2]
            if name not in FILES:
                self._refuse("EntryNotFound")
                return
            etag = hashlib.sha256(FILES[name]).hexdigest()
            self._reply(200, FILES[name], {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
        else:
            self._refuse("GatedRepo" if "gated" in path else "RepoNotFound")

    def _refuse(self, code: str) -> None:
        self._reply(403 if code == "GatedRepo" else 404, b"{}", {"X-Error-Code": code})

    def _reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def pull(hub: str, folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """``quire pull`` in a process of its own, since the client reads its endpoint when it is imported."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    env |= {"HF_ENDPOINT": hub, "HF_HOME": str(folder / "home")}
    command = [sys.executable, "-m", "quire", "pull", "--download-dir", str(folder), *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)


@pytest.mark.parametrize("revision", [[], ["--revision", COMMIT]])
def test_a_repository_comes_with_what_quire_reads_and_nothing_else(
    hub: str, tmp_path: Path, revision: list[str]
) -> None:
    done = pull(hub, tmp_path, "org/name", "--hf-token", "hf_secret", *revision)
    assert done.returncode == 0, done.stderr
    snapshot = Path(done.stdout.strip())
    assert {str(p.relative_to(snapshot)): p.read_bytes() for p in snapshot.rglob("*") if p.is_file()} == WANTED
    assert {token for _, token in Hub.asked} == {"Bearer hf_secret"}
    assert all("org/name" in path for path, _ in Hub.asked)  # and nothing else is asked or told


@pytest.mark.parametrize("name", ["org/name:q4.gguf", "org/name/q4.gguf"])
def test_one_file_of_a_repository(hub: str, tmp_path: Path, name: str) -> None:
    done = pull(hub, tmp_path, name)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).read_bytes() == FILES["q4.gguf"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["org/other"], "org/other is neither a path on this machine nor a model on the hub"),
        (["org/gated"], "org/gated is gated: accept its terms"),
        (["org/name", "--revision", "v9"], "org/name has no revision 'v9'"),
        (["org/name:q9.gguf"], "holds no such file: org/name:q9.gguf"),
    ],
)
def test_what_the_hub_lacks_ends_in_one_sentence(hub: str, tmp_path: Path, argv: list[str], words: str) -> None:
    done = pull(hub, tmp_path, *argv)
    assert done.returncode == 1
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
