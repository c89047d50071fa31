"""The requests on which engines are compared: token ids and fixed output lengths, drawn from a seed.

``nano`` repeats the draw of nano-vllm's published benchmark. The order of calls on the random stream is part of each
definition: changing it changes the workload, and the checksums in tests/bench catch that.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from quire.config.bench import WorkloadConfig

VOCAB_HI = 10_000
_RANDOM_COUNT = 64


@dataclass(frozen=True, slots=True)
class Request:
    prompt_token_ids: list[int]
    max_tokens: int


Draw = Callable[[random.Random], list[Request]]


@dataclass(frozen=True)
class Workload:
    """``concurrency`` is how many requests a load generator keeps in flight when nothing else is said; 0: all."""

    summary: str
    draw: Draw
    concurrency: int = 0


def make_workload(name: str, seed: int = 0) -> list[Request]:
    """The requests of a workload; token ids are from 0 to ``VOCAB_HI``, both included."""
    return WORKLOADS[name].draw(random.Random(seed))


def random_workload(count: int, input_len: int, output_len: int, seed: int = 0) -> list[Request]:
    """``count`` requests of equal lengths."""
    r = random.Random(seed)
    return [Request(_tokens(r, input_len), output_len) for _ in range(count)]


def _tokens(r: random.Random, count: int) -> list[int]:
    return [r.randint(0, VOCAB_HI) for _ in range(count)]


def _ranges(count: int, inputs: tuple[int, int], outputs: tuple[int, int]) -> Draw:
    def draw(r: random.Random) -> list[Request]:
        prompts = [_tokens(r, r.randint(*inputs)) for _ in range(count)]
        lengths = [r.randint(*outputs) for _ in range(count)]
        return [Request(p, n) for p, n in zip(prompts, lengths, strict=True)]

    return draw


def _fixed(count: int, input_len: int, output_len: int) -> Draw:
    def draw(r: random.Random) -> list[Request]:
        return [Request(_tokens(r, input_len), output_len) for _ in range(count)]

    return draw


def _shared(count: int, shared_len: int, own_len: int, output_len: int) -> Draw:
    def draw(r: random.Random) -> list[Request]:
        shared = _tokens(r, shared_len)
        return [Request(shared + _tokens(r, own_len), output_len) for _ in range(count)]

    return draw


def _sharegpt(r: random.Random) -> list[Request]:
    def length(mean: float, sigma: float = 1.0) -> int:
        drawn = math.exp(r.gauss(math.log(mean) - sigma * sigma / 2, sigma))
        return min(1024, max(4, round(drawn)))

    lengths = [(length(220), length(200)) for _ in range(1000)]
    return [Request(_tokens(r, i), o) for i, o in lengths]


WORKLOADS: dict[str, Workload] = {
    "nano": Workload("256 requests, 100..1,024 in, 100..1,024 out", _ranges(256, (100, 1024), (100, 1024))),
    "sharegpt": Workload("1,000 requests, lognormal lengths (mean 220 in, 200 out)", _sharegpt),
    "prefill": Workload("64 requests, 2,048 in, 1 out", _fixed(64, 2048, 1)),
    "decode1": Workload("1 request, 128 in, 256 out", _fixed(1, 128, 256), 1),
    "prefix": Workload("256 requests on a shared prefix of 2,048, 64 own in, 64 out", _shared(256, 2048, 64, 64)),
    "w1": Workload("64 requests at concurrency 16, 32..256 in, 32..128 out", _ranges(64, (32, 256), (32, 128)), 16),
    "w2": Workload("a single stream, 128 in, 256 out", _fixed(1, 128, 256), 1),
    "w3": Workload("prefill of 1,024, 1 out", _fixed(1, 1024, 1), 1),
    "w4": Workload(
        "32 requests at concurrency 16, shared prefix of 512, 16 own in, 32 out", _shared(32, 512, 16, 32), 16
    ),
}


def requests_of(work: WorkloadConfig, run: int = 0) -> list[Request]:
    """The requests that the options ask for; other prompts for each ``run``, so that none is cached from the last."""
    seed = work.workload_seed + run
    if work.workload == "random":
        count = work.num_prompts or _RANDOM_COUNT
        return random_workload(count, work.input_len, work.output_len, seed)
    return make_workload(work.workload, seed)[: work.num_prompts]
