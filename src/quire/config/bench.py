"""Options of ``quire bench``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

from quire.config.options import ConfigError, Options, option
from quire.config.paths import check_output
from quire.config.values import parse_rate

WORKLOAD_NAMES = ("nano", "sharegpt", "prefill", "decode1", "prefix", "w1", "w2", "w3", "w4", "random")

_work = partial(option, group="Workload")
_load = partial(option, group="Load")
_result = partial(option, group="Results")


@dataclass(frozen=True)
class WorkloadConfig(Options):
    """Which requests. All are token ids with fixed output lengths, drawn from a seed."""

    workload: str = _work("w1", "Set of requests; see docs/benchmarks.md.", choices=WORKLOAD_NAMES)
    num_prompts: int | None = _work(None, "Use only so many requests (random: make so many).", low=1, high=1_000_000)
    input_len: int = _work(128, "Prompt tokens of the random workload.", low=1, high=2**24, metavar="TOKENS")
    output_len: int = _work(128, "Output tokens of the random workload.", low=1, high=2**24, metavar="TOKENS")
    workload_seed: int = _work(0, "Seed of the draw.", low=0)


@dataclass(frozen=True)
class LatencyConfig(Options):
    batch_size: int = _work(1, "Requests in the batch.", low=1, high=4096)
    input_len: int = _work(128, "Prompt tokens of each request.", low=1, high=2**24, metavar="TOKENS")
    output_len: int = _work(128, "Output tokens of each request.", low=1, high=2**24, metavar="TOKENS")
    num_iters: int = _work(5, "Timed runs.", low=1, high=10_000)
    num_iters_warmup: int = _work(1, "Runs before the timed ones.", low=0, high=10_000)


@dataclass(frozen=True)
class LoadConfig(Options):
    """How ``bench serve`` sends the requests, and where."""

    base_url: str = _load("http://127.0.0.1:8000", "Server under test; any with OpenAI's API.", "--url", metavar="URL")
    model: str | None = _load(None, "Name of the model in the API (default: the server's first).", metavar="NAME")
    api_key: str | None = _load(None, "Key of the server.", env=("VLLM_API_KEY", "OPENAI_API_KEY"), secret=True)
    max_concurrency: int | None = _load(
        None, "Most requests in flight (default: the workload's own).", low=1, high=10_000
    )
    request_rate: tuple[float | None, ...] = _load(
        (),
        "Requests a second, arriving as a Poisson process (inf: all at once); several rates run one after another.",
        parse=parse_rate,
        metavar="RATE",
    )
    text_prompts: bool = _load(
        False, "Send text of about the same length instead of token ids, for servers that take no ids."
    )

    def check(self) -> None:
        if any(rate is not None and rate <= 0 for rate in self.request_rate):
            raise ConfigError("request_rate", "--request-rate must be above 0.")


@dataclass(frozen=True)
class ResultConfig(Options):
    """Where the figures go, besides the terminal."""

    result: str | None = _result(None, "Write the figures to this JSON file.", metavar="FILE")
    plot: str | None = _result(None, "Draw the distribution of the latencies into this PNG file.", metavar="FILE")

    def check(self) -> None:
        for name, path in (("result", self.result), ("plot", self.plot)):
            if path:
                check_output(name, path)
        if self.plot and find_spec("matplotlib") is None:
            raise ConfigError("plot", "--plot needs matplotlib: pip install 'quire-llm[bench]'.")
