"""What crosses the line between a client and the engine: msgspec structs, the same inline and over ZeroMQ."""

from __future__ import annotations

from typing import Literal

import msgspec

from quire.params import SamplingParams

FinishReason = Literal["stop", "length", "abort", "error"]


class EngineRequest(msgspec.Struct, tag="add", omit_defaults=True):
    """One sequence to generate (a client turns ``n`` completions into ``n`` of these).

    Token ids are validated against the vocabulary, ``params`` against the model, before this is built.
    ``max_tokens`` in ``params`` is set and prompt + max_tokens fits the context. ``seed`` is set for each
    sequence by the client; ``stop`` and ``n`` in ``params`` are the client's business.
    ``output_token_ids`` are tokens it has generated already, before the engine was restarted: it goes on after them.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    seed: int = 0
    eos_token_ids: list[int] = []
    bad_words_token_ids: list[list[int]] = []
    priority: int = 0
    cache_salt: str = ""
    arrival_time: float = 0.0  # time.time()
    output_token_ids: list[int] = []


class Abort(msgspec.Struct, tag="abort"):
    """Cancel these requests, wherever they are; unknown ids are ignored (they may just have finished)."""

    request_ids: list[str]


class ResetPrefixCache(msgspec.Struct, tag="reset"):
    """Forget every cached page that no request uses."""


class Shutdown(msgspec.Struct, tag="shutdown"):
    """End the engine's process."""


ClientMessage = EngineRequest | Abort | ResetPrefixCache | Shutdown


class TokenLogprobs(msgspec.Struct, array_like=True):
    """For one position: the token itself first, then the top ``k``; ranks count from 1."""

    token_ids: list[int]
    logprobs: list[float]
    ranks: list[int]


class TokenDelta(msgspec.Struct, tag="delta", omit_defaults=True):
    """What one step added to one request. The last one of a request has ``finish_reason``.

    ``stop_reason`` is the stop token id that ended it (``None`` for EOS). ``error`` goes with finish_reason "error".
    ``timings`` comes with the first and the last delta.
    """

    request_id: str
    token_ids: list[int] = []
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    error: str | None = None
    num_cached_tokens: int = 0
    scheduled_time: float | None = None
    first_token_time: float | None = None


class Rejected(msgspec.Struct, tag="rejected"):
    """The queue is full: nothing was queued; try again after ``retry_after`` seconds."""

    request_id: str
    message: str
    retry_after: float


class EngineStats(msgspec.Struct, tag="stats", omit_defaults=True):
    """Counters since start and gauges of now, sent at most a few times a second and after the last request."""

    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0
    steps: int = 0
    prompt_tokens: int = 0  # prompt tokens of requests admitted
    computed_tokens: int = 0  # tokens run through the model
    cached_tokens: int = 0  # prompt tokens found in the prefix cache
    generation_tokens: int = 0
    preemptions: int = 0
    rejected: int = 0
    finished: dict[str, int] = {}
    free_pages: int = 0
    total_pages: int = 0


class EngineReady(msgspec.Struct, tag="ready"):
    """The engine can take requests: facts that the front needs, and where start-up time went."""

    max_model_len: int
    vocab_size: int
    slots: int
    num_pages: int
    page_size: int
    model_bytes: int
    kv_bytes: int
    phases: dict[str, float]  # name -> seconds, in order; their sum is the engine's start-up time


class Progress(msgspec.Struct, tag="progress"):
    """A start-up phase began."""

    phase: str


class EngineFailed(msgspec.Struct, tag="failed"):
    """The engine can't start or go on; ``message`` is one sentence for the user."""

    message: str


EngineMessage = TokenDelta | Rejected | EngineStats | EngineReady | Progress | EngineFailed


class DeltaBatch(msgspec.Struct, tag="batch"):
    """All deltas of one step in one message."""

    deltas: list[TokenDelta]
