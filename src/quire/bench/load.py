"""A load generator: sends requests to an OpenAI-compatible server and times every token that comes back."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from quire.bench.workloads import Request
from quire.client import ApiClient, ServerError


@dataclass(slots=True)
class Timing:
    """One request: seconds on the monotonic clock, tokens as the server counted them."""

    start: float
    arrivals: list[float] = field(default_factory=list)
    end: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None

    @property
    def ttft(self) -> float:
        return self.arrivals[0] - self.start

    @property
    def e2e(self) -> float:
        return self.end - self.start

    @property
    def tpot(self) -> float | None:
        """Mean seconds per token after the first."""
        return (self.end - self.arrivals[0]) / (self.output_tokens - 1) if self.output_tokens > 1 else None

    @property
    def gaps(self) -> list[float]:
        """Seconds between events of the stream."""
        return [b - a for a, b in zip(self.arrivals, self.arrivals[1:], strict=False)]


@dataclass(frozen=True)
class Load:
    """How to send: at most ``concurrency`` in flight (0: no bound), arriving at ``rate`` a second (None: at once)."""

    concurrency: int = 0
    rate: float | None = None
    seed: int = 0
    text_prompts: bool = False


async def send_all(
    client: ApiClient,
    model: str,
    requests: Sequence[Request],
    load: Load,
    done: Callable[[Timing], None] = lambda timing: None,
) -> tuple[list[Timing], float]:
    """Send every request under ``load``; the timings in order, and the wall seconds. Failures are in the timings."""
    slots = asyncio.Semaphore(load.concurrency or len(requests))
    start = time.perf_counter()

    async def one(request: Request, delay: float) -> Timing:
        await asyncio.sleep(max(0.0, start + delay - time.perf_counter()))
        async with slots:
            timing = await send(client, model, request, load.text_prompts)
        done(timing)
        return timing

    arrivals = _arrivals(len(requests), load)
    timings = await asyncio.gather(*(one(r, a) for r, a in zip(requests, arrivals, strict=True)))
    return list(timings), time.perf_counter() - start


async def send(client: ApiClient, model: str, request: Request, text_prompt: bool = False) -> Timing:
    """Stream one completion of exactly ``request.max_tokens`` tokens."""
    body: dict[str, Any] = {
        "model": model,
        "prompt": _as_text(request) if text_prompt else request.prompt_token_ids,
        "max_tokens": request.max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    timing = Timing(time.perf_counter())
    events = 0
    try:
        async for event in client.stream("/v1/completions", body):
            if event.get("choices"):
                timing.arrivals.append(time.perf_counter())
                events += bool(event["choices"][0].get("text"))
            if event.get("usage"):
                _read_usage(timing, event["usage"])
    except ServerError as error:
        timing.error = str(error)
    timing.end = timing.arrivals[-1] if timing.arrivals else time.perf_counter()
    timing.output_tokens = timing.output_tokens or events
    if timing.error is None and timing.output_tokens != request.max_tokens:
        timing.error = f"{timing.output_tokens} tokens came instead of {request.max_tokens}"
    return timing


def _read_usage(timing: Timing, usage: dict[str, Any]) -> None:
    timing.prompt_tokens = usage["prompt_tokens"]
    timing.output_tokens = usage["completion_tokens"]
    timing.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0


def _arrivals(count: int, load: Load) -> list[float]:
    """Seconds from the start at which requests arrive: exponential gaps, the first at once."""
    if load.rate is None:
        return [0.0] * count
    r = random.Random(load.seed)
    times = [0.0]
    for _ in range(count - 1):
        times.append(times[-1] + r.expovariate(load.rate))
    return times


def _as_text(request: Request) -> str:
    """A text of about as many tokens, different wherever the ids are."""
    return " ".join(str(token % 1000) for token in request.prompt_token_ids[: len(request.prompt_token_ids) // 3 + 1])
