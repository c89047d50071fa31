"""Options of the commands that ask a model: chat, complete, generate; and of those that only look."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from quire.config.options import ConfigError, Options, option
from quire.config.paths import check_output

_client = partial(option, group="Client")
_sample = partial(option, group="Sampling")
_files = partial(option, group="Files")


@dataclass(frozen=True)
class ClientConfig(Options):
    """Which server to talk to."""

    url: str | None = _client(
        None,
        "Address of a running server, such as http://127.0.0.1:8000. Without it, one is started for the session.",
    )
    api_key: str | None = _client(None, "Key of the server.", env=("VLLM_API_KEY", "OPENAI_API_KEY"), secret=True)
    quick: str | None = _client(None, "Send this one message, print the answer and leave.", "-q", metavar="TEXT")


@dataclass(frozen=True)
class ChatConfig(ClientConfig):
    system_prompt: str | None = _client(None, "Instructions that precede the conversation.", metavar="TEXT")


@dataclass(frozen=True)
class SamplingConfig(Options):
    """How to sample. What is left out keeps the API's default; ranges are those of ``SamplingParams``."""

    max_tokens: int = _sample(512, "Longest answer in tokens.", metavar="TOKENS")
    temperature: float | None = _sample(None, "0 picks the likeliest token, higher is more varied.")
    top_p: float | None = _sample(None, "Keep the likeliest tokens that make up this probability.")
    top_k: int | None = _sample(None, "Keep this many of the likeliest tokens; 0: all.")
    min_p: float | None = _sample(None, "Keep tokens at least this likely relative to the likeliest.")
    sampling_seed: int | None = _sample(None, "Seed: the same seed gives the same answer.")
    stop: tuple[str, ...] = _sample((), "End the answer before this text.", metavar="TEXT")

    def chosen(self) -> dict[str, Any]:
        """The fields that were set, under the names the API and ``SamplingParams`` use."""
        names = {"sampling_seed": "seed"}
        fields = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "sampling_seed", "stop")
        values = {names.get(name, name): getattr(self, name) for name in fields}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items() if v not in (None, ())}


@dataclass(frozen=True)
class GenerateConfig(Options):
    input: str = _files(
        "-",
        "Prompts: .txt has one a line; .jsonl has an object a line with prompt, prompt_token_ids or messages, and any "
        "sampling field; - reads text lines from standard input.",
        "-i",
        positional=True,
        metavar="FILE",
    )
    output: str = _files("-", "Where the JSON lines go; - is standard output.", "-o", metavar="FILE")
    chat: bool = _files(False, "Send each text prompt as a chat message, through the model's template.")

    def check(self) -> None:
        if self.output == "-":
            return
        if self.output == self.input:
            raise ConfigError("output", "--output must not be the input file.")
        check_output("output", self.output)


@dataclass(frozen=True)
class ReportConfig(Options):
    """For the commands that print a table."""

    json: bool = option(False, "Print JSON instead of a table.")
