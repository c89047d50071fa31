"""Every route but the liveness probes needs the key, however the request is dressed up."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from front_fakes import FakeEngine
from front_harness import LiveFront, http, live, post

from quire.config.options import ConfigError
from quire.config.server import ServerConfig
from quire.server.auth import PUBLIC_PATHS, Keys
from quire.server.sockets import bind, check_exposure, is_loopback

KEY, OTHER = "key-one", "key-two"


@pytest.fixture(scope="module")
def front() -> Iterator[LiveFront]:
    with live(api_key=(KEY, OTHER)) as front:
        yield front


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def routes(front: LiveFront) -> list[tuple[str, str]]:
    """Method and path of every route, those that FastAPI adds by itself among them."""
    schema = http.get(front.url + "/openapi.json", headers=bearer(KEY)).json()
    found = {(method.upper(), path) for path, methods in schema["paths"].items() for method in methods}
    found |= {("GET", "/openapi.json"), ("GET", "/docs"), ("GET", "/redoc"), ("POST", "/ping"), ("GET", "/no/such")}
    return sorted((method, path.replace("{", "").replace("}", "")) for method, path in found)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("wrong"),
        {"Authorization": "Bearer"},
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"X-Api-Key": KEY},
        {"Api-Key": KEY},
    ],
)
def test_no_route_answers_without_a_key(front: LiveFront, headers: dict[str, str]) -> None:
    listed = routes(front)
    assert len(listed) >= 15
    for method, path in listed:
        response = http.request(method, front.url + path, headers=headers, json={} if method == "POST" else None)
        if path in PUBLIC_PATHS:
            assert response.status_code in (200, 405), path
        else:
            assert response.status_code == 401, path
            assert response.json()["error"]["type"] == "AuthenticationError"
            assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("key", [KEY, OTHER])
def test_each_key_opens(front: LiveFront, key: str) -> None:
    assert post(front.url, "/v1/completions", {"prompt": "x"}, headers=bearer(key)).status_code == 200
    assert http.get(front.url + "/metrics", headers={"Authorization": f"bearer {key}"}).status_code == 200


@pytest.mark.parametrize(
    "target",
    [
        "//v1/models", "/v1//models", "/v1/models/", "/v1/models?x=/health", "/health/../v1/models",
        "/health/%2e%2e/v1/models",
        "/health%2f..%2fv1/models", "/v1/%6dodels", "http://other/v1/models", "/health/v1/models", "/v1/models#/health",
        "/V1/MODELS", "/v1/models;/health", "/health;/v1/models", "*",
    ],
)  # fmt: skip
def test_odd_targets_don_t_slip_through(front: LiveFront, target: str) -> None:
    host, port = front.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        sock.sendall(f"GET {target} HTTP/1.1\r\nHost: /health\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while part := sock.recv(65536):
            answer += part
    assert answer.split(b" ", 2)[1] in (b"401", b"400", b"404"), answer
    assert b"max_model_len" not in answer


def test_two_authorization_headers_are_none(front: LiveFront) -> None:
    headers = [("Authorization", "Bearer wrong"), ("Authorization", f"Bearer {KEY}")]
    assert http.get(front.url + "/v1/models", headers=headers).status_code == 401


def test_cors_preflight_needs_no_key_but_the_request_does() -> None:
    with live(api_key=(KEY,), allowed_origins=("https://app.example",)) as front:
        preflight = http.options(
            front.url + "/v1/completions",
            headers={"Origin": "https://app.example", "Access-Control-Request-Method": "POST"},
        )
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://app.example"
        refused = post(front.url, "/v1/completions", {"prompt": "x"}, headers={"Origin": "https://app.example"})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://app.example"
        other = http.get(front.url + "/health", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


def test_tenants_have_caches_of_their_own() -> None:
    engine = FakeEngine()
    with live(engine, api_key=(KEY, OTHER)) as front:
        for key, salt in ((KEY, None), (OTHER, None), (KEY, "s"), (KEY, None)):
            post(front.url, "/v1/completions", {"prompt": "x", "cache_salt": salt}, headers=bearer(key))
    salts = [r.cache_salt for r in engine.seen]
    assert len(set(salts)) == 3
    assert salts[0] == salts[3]
    assert KEY not in "".join(salts)
    open_engine = FakeEngine()
    with live(open_engine) as front:
        for salt in (None, "s", ":s"):
            post(front.url, "/v1/completions", {"prompt": "x", "cache_salt": salt})
    assert len({r.cache_salt for r in open_engine.seen}) == 3


def test_cancel_reaches_only_the_tenant_s_own_requests() -> None:
    engine = FakeEngine(delay=0.01)
    with live(engine, api_key=(KEY, OTHER)) as front, http.stream(
        "POST", front.url + "/v1/completions", json={"prompt": "x", "max_tokens": 400, "stream": True},
        headers={**bearer(KEY), "X-Request-Id": "job"},
    ) as stream:  # fmt: skip
        lines = stream.iter_lines()
        next(lines)
        path = "/v1/requests/cmpl-job/cancel"
        assert post(front.url, path, None, headers=bearer(OTHER)).status_code == 404
        assert post(front.url, path, None, headers=bearer(KEY)).json() == {"id": "cmpl-job", "cancelled": True}
        rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert '"finish_reason":"abort"' in rest[-2]
        assert not engine.running


def test_exposed_servers_need_a_key() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.com", ""):
        with pytest.raises(ConfigError, match="--api-key"):
            check_exposure(ServerConfig(host=host))
        check_exposure(ServerConfig(host=host, api_key=(KEY,)))
        check_exposure(ServerConfig(host=host, insecure=True))
    for host in ("127.0.0.1", "localhost", "::1", "127.1.2.3"):
        check_exposure(ServerConfig(host=host))
        assert is_loopback(host)


def test_a_taken_port_is_told_in_one_sentence() -> None:
    with bind(ServerConfig(port=0)) as sock, pytest.raises(ConfigError, match="Can't listen on"):
        bind(ServerConfig(port=sock.getsockname()[1]))


def test_a_unix_socket_is_taken_over_from_a_dead_server_only(tmp_path: Path) -> None:
    config = ServerConfig(uds=str(tmp_path / "s"))
    with bind(config), pytest.raises(ConfigError, match=r"Can't listen on .*/s: Address already in use\."):
        bind(config)
    with bind(config) as sock:
        assert sock.getsockname() == config.uds


def test_keys_are_not_kept() -> None:
    keys = Keys([KEY])
    assert KEY not in repr(vars(keys))
    assert KEY not in repr(ServerConfig(api_key=(KEY,)))
    assert keys.tenant(f"Bearer {KEY}") != keys.tenant(f"Bearer {OTHER}")
    assert keys.tenant("Bearer \udcff") is None
    values: Any = keys.tenant(f"Bearer {KEY}")
    assert len(values) == 16
