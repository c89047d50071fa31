"""The listening socket, bound before anything is loaded so that a taken port is told at once."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import ssl
import stat
from pathlib import Path

from quire.config.options import ConfigError
from quire.config.server import ServerConfig

_BACKLOG = 2048


def check_exposure(config: ServerConfig) -> None:
    """Refuse to listen beyond this machine without a key. Raises ``ConfigError``."""
    if config.uds or config.api_key or config.insecure or is_loopback(config.host):
        return
    raise ConfigError(
        "host",
        f"{config.host} can be reached by other machines: set --api-key, or --insecure if a proxy guards the server.",
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_tls(config: ServerConfig) -> None:
    """Try the key and the certificate. Raises ``ConfigError``."""
    if config.ssl_certfile is None:
        return
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(config.ssl_certfile, config.ssl_keyfile)
    except (OSError, ssl.SSLError):
        raise ConfigError("ssl_certfile", "--ssl-certfile and --ssl-keyfile can't be read, or don't match.") from None


def bind(config: ServerConfig) -> socket.socket:
    """The listening socket. Raises ``ConfigError`` when the address can't be had."""
    try:
        return _bind_unix(Path(config.uds)) if config.uds else _bind_tcp(config.host, config.port)
    except OSError as error:
        where = config.uds or f"{config.host} port {config.port}"
        raise ConfigError("uds" if config.uds else "port", f"Can't listen on {where}: {error.strerror}.") from None


def address(config: ServerConfig, sock: socket.socket) -> str:
    """The URL of the API."""
    if config.uds:
        return f"unix:{config.uds}"
    host, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    scheme = "https" if config.ssl_certfile else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}{config.root_path}/v1"


def _bind_tcp(host: str, port: int) -> socket.socket:
    family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return _listen(sock, where)


def _bind_unix(path: Path) -> socket.socket:
    if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
        if _is_served(path):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        path.unlink()  # left behind by a server that was killed
    return _listen(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), str(path))


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0


def _listen(sock: socket.socket, where: object) -> socket.socket:
    try:
        sock.bind(where)  # type: ignore[arg-type]
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock
