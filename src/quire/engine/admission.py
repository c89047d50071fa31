"""The one check of a request against the model and the engine's bounds, used by the front and by the engine."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from quire.engine.errors import QueueFull
from quire.engine.messages import EngineRequest
from quire.params import ParameterError, SamplingParams

_RETRY_UNKNOWN = 5.0
_RETRY_MIN, _RETRY_MAX = 1.0, 120.0


class Limits(msgspec.Struct, frozen=True):
    """What one sequence may ask of this engine."""

    max_model_len: int  # tokens of prompt and output
    vocab_size: int  # width of the logits
    max_logprobs: int


def check_prompt(token_ids: Any, limits: Limits) -> None:
    """Raise ``ParameterError`` unless ``token_ids`` is a list of ids of the vocabulary that leaves room to answer."""
    if not isinstance(token_ids, list) or not token_ids:
        raise ParameterError("prompt", "The prompt must hold at least one token.")
    if len(token_ids) >= limits.max_model_len:
        raise ParameterError(
            "prompt",
            f"The prompt has {len(token_ids)} tokens; the model's context is {limits.max_model_len} tokens and must "
            "hold the output as well. Shorten the prompt or raise --max-model-len.",
        )
    _check_ids("prompt", token_ids, limits.vocab_size)


def fit_max_tokens(prompt_len: int, max_tokens: int | None, limits: Limits) -> int:
    """Most tokens to generate: ``max_tokens``, or the rest of the context when that is ``None``.

    Raises ``ParameterError`` when prompt and ``max_tokens`` together exceed the context.
    """
    rest = limits.max_model_len - prompt_len
    if max_tokens is None:
        return rest
    if max_tokens > rest:
        raise ParameterError(
            "max_tokens",
            f"The prompt has {prompt_len} tokens and max_tokens is {max_tokens}; the model's context is "
            f"{limits.max_model_len} tokens. Lower max_tokens to {rest} or shorten the prompt.",
        )
    return max_tokens


def check_params(params: SamplingParams, limits: Limits) -> None:
    """Raise ``ParameterError`` where the parameters don't fit the model."""
    if not isinstance(params, SamplingParams):
        raise ParameterError("sampling_params", f"sampling_params must be SamplingParams, not {type(params).__name__}.")
    params.check_against_model(limits.vocab_size, limits.max_logprobs)


def check_request(request: EngineRequest, limits: Limits) -> None:
    """All that must hold before a request may reach the runner. Raises ``ParameterError``."""
    check_prompt(request.prompt_token_ids, limits)
    check_params(request.params, limits)
    _check_ids("output_token_ids", request.output_token_ids, limits.vocab_size)
    for ids in request.bad_words_token_ids:
        _check_ids("bad_words", ids, limits.vocab_size)
    if len(request.prompt_token_ids) + len(request.output_token_ids) > limits.max_model_len:
        raise ParameterError("output_token_ids", "Prompt and output together exceed the model's context.")


def _check_ids(name: str, token_ids: Sequence[Any], vocab_size: int) -> None:
    if not token_ids:
        return
    if set(map(type, token_ids)) != {int} or min(token_ids) < 0 or max(token_ids) >= vocab_size:
        raise ParameterError(name, f"{name} must hold token ids from 0 to {vocab_size - 1}.")


class QueueBound:
    """Bounds what waits for a slot, in requests and in prompt tokens, and measures how fast it drains."""

    def __init__(self, max_requests: int, max_tokens: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_requests = max_requests
        self.max_tokens = max_tokens
        self._clock = clock
        self._finished: deque[float] = deque(maxlen=64)

    def finished(self) -> None:
        """A request left the engine."""
        self._finished.append(self._clock())

    def check(self, waiting: int, waiting_tokens: int, free_slots: int, tokens: int) -> None:
        """Raise ``QueueFull`` if a request of ``tokens`` prompt tokens can't join ``waiting`` others."""
        if waiting >= self.max_requests + free_slots:
            raise QueueFull(
                f"The server's queue is full ({self.max_requests} requests); try again later.",
                self.retry_after(waiting),
            )
        if waiting and waiting_tokens + tokens > self.max_tokens:
            raise QueueFull(
                f"The server's queue is full ({self.max_tokens} prompt tokens); try again later.",
                self.retry_after(waiting),
            )

    def retry_after(self, waiting: int) -> float:
        """Seconds until what waits now has been taken, at the rate of the last requests that finished."""
        if len(self._finished) < 2:
            return _RETRY_UNKNOWN
        rate = len(self._finished) / max(self._clock() - self._finished[0], 1e-3)
        return min(max(waiting / rate, _RETRY_MIN), _RETRY_MAX)
