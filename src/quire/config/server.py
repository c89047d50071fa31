"""Options of the HTTP server."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from quire.config.options import ConfigError, Options, option

_network = partial(option, group="Server: network and access")
_api = partial(option, group="Server: API")
_log = partial(option, group="Server: logs")


@dataclass(frozen=True)
class ServerConfig(Options):
    """Everything the HTTP front needs to know. Raises ``ConfigError`` on construction for a value out of range."""

    host: str = _network("127.0.0.1", "Address to listen on; beyond loopback it needs --api-key or --insecure.")
    port: int = _network(8000, "Port to listen on; 0 takes a free one.", low=0, high=65535)
    uds: str | None = _network(None, "Listen on this Unix socket instead.", metavar="PATH")
    api_key: tuple[str, ...] = _network(
        (), "Keys that may use the API.", env=("VLLM_API_KEY",), secret=True, metavar="KEY"
    )
    insecure: bool = _network(False, "Listen beyond loopback without a key.")
    allowed_origins: tuple[str, ...] = _network((), "Origins that browsers may call from (CORS).", metavar="ORIGIN")
    root_path: str = _network("", "Path prefix behind a proxy.")
    ssl_keyfile: str | None = _network(None, "TLS key.", metavar="FILE")
    ssl_certfile: str | None = _network(None, "TLS certificate.", metavar="FILE")
    shutdown_timeout: float = _network(
        30.0, "Seconds that requests in flight get to finish after SIGTERM.", low=0, high=86_400, metavar="SECONDS"
    )

    served_model_name: tuple[str, ...] = _api(
        (), "Names of the model in the API; the first is the one returned.", metavar="NAME"
    )
    chat_template: str | None = _api(
        None, "File with a Jinja chat template to use instead of the model's.", metavar="FILE"
    )
    response_role: str = _api("assistant", "Role of chat answers.")
    strict: bool = _api(False, "Refuse unknown request fields instead of warning in a header.")
    max_body_bytes: int = _api(32 * 1024 * 1024, "Largest request body.", low=1024, high=2**40, metavar="BYTES")
    max_prompts: int = _api(1024, "Most prompts in one completions request.", low=1, high=1_000_000)
    stream_interval: int = _api(
        1, "Send a stream event each N tokens (the first at once).", low=1, high=10_000, metavar="N"
    )
    sse_keep_alive_interval: float = _api(
        0.0,
        "Seconds of silence after which a stream gets a comment line; 0: never.",
        low=0,
        high=86_400,
        metavar="SECONDS",
    )

    log_level: Literal["debug", "info", "warning", "error"] = _log("info", "Log level.", "--uvicorn-log-level")
    enable_log_requests: bool = _log(False, "Log a line for each request (never its text).")
    disable_log_stats: bool = _log(False, "No periodic line of throughput while busy.")

    def check(self) -> None:
        if (self.ssl_keyfile is None) != (self.ssl_certfile is None):
            raise ConfigError("ssl_certfile", "--ssl-keyfile and --ssl-certfile must be given together.")
        if self.root_path and (not self.root_path.startswith("/") or self.root_path.endswith("/")):
            raise ConfigError("root_path", "--root-path must begin with / and not end with it, as in /llm.")
        if any(not key or key != key.strip() for key in self.api_key):
            raise ConfigError("api_key", "--api-key must not be empty, nor begin or end with a blank.")
