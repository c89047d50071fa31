"""What a request may ask of the sampler, and the one validator of it.

Names, defaults and meanings follow vLLM's ``SamplingParams``.
"""

from __future__ import annotations

from typing import Any

import msgspec

MAX_N = 16
MAX_STOP = 16
MAX_STOP_CHARS = 1024
MAX_TOKEN_LIST = 1024
MAX_LOGIT_BIAS = 1024
GREEDY_BELOW = 1e-5


class ParameterError(ValueError):
    """A request field is out of range; ``param`` names the field, the message its limit and cure."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


class SamplingParams(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How to sample one request. Raises ``ParameterError`` on construction for a value out of range."""

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: list[str] = []
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    logit_bias: dict[int, float] = {}
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] = []

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            self.stop = [self.stop]
        for name in ("stop", "stop_token_ids", "bad_words", "logit_bias"):
            if getattr(self, name) is None:
                setattr(self, name, {} if name == "logit_bias" else [])
        if self.seed == -1:
            self.seed = None  # as in vLLM
        self._check()

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    def _check(self) -> None:
        for name, (low, high, low_open) in FLOAT_RANGES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ParameterError(name, f"{name} must be a number.")
            if not low <= value <= high or (low_open and value == low):  # false for NaN, and safe for huge integers
                bracket = "(" if low_open else "["
                raise ParameterError(name, f"{name} must be a finite number in {bracket}{low:g}, {high:g}].")
        for name, (low, high, optional) in INT_RANGES.items():
            value = getattr(self, name)
            if value is None and optional:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ParameterError(name, f"{name} must be an integer from {low} to {high}.")
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ParameterError(name, f"{name} must be true or false.")
        if self.n > 1 and self.greedy:
            raise ParameterError("n", "n must be 1 when temperature is 0: greedy samples are all the same.")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ParameterError("min_tokens", f"min_tokens must be at most max_tokens ({self.max_tokens}).")
        for name, chars in (("stop", MAX_STOP_CHARS), ("bad_words", MAX_STOP_CHARS)):
            _check_strings(name, getattr(self, name), chars)
        if self.stop and not self.detokenize:
            raise ParameterError("stop", "stop strings need detokenize=True; use stop_token_ids instead.")
        _check_ids("stop_token_ids", self.stop_token_ids, None)
        if self.allowed_token_ids is not None:
            if not self.allowed_token_ids:
                raise ParameterError("allowed_token_ids", "allowed_token_ids must not be empty.")
            _check_ids("allowed_token_ids", self.allowed_token_ids, None)
        if not isinstance(self.logit_bias, dict) or len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise ParameterError("logit_bias", f"logit_bias must map at most {MAX_LOGIT_BIAS} token ids to numbers.")
        for bias in self.logit_bias.values():
            if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -100 <= bias <= 100:
                raise ParameterError("logit_bias", "logit_bias values must be finite numbers in [-100, 100].")
        _check_ids("logit_bias", list(self.logit_bias), None)

    def check_against_model(self, vocab_size: int, max_logprobs: int) -> None:
        """The checks that need the model: token ids below ``vocab_size`` (the logits' width), logprobs cap."""
        for name in ("stop_token_ids", "allowed_token_ids"):
            _check_ids(name, getattr(self, name) or [], vocab_size)
        _check_ids("logit_bias", list(self.logit_bias), vocab_size)
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None and value > max_logprobs:
                raise ParameterError(name, f"{name} must be at most {max_logprobs} on this server (--max-logprobs).")


_FLAGS = (
    "ignore_eos",
    "detokenize",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "include_stop_str_in_output",
)
FLOAT_RANGES: dict[str, tuple[float, float, bool]] = {
    "temperature": (0.0, 2.0, False),
    "top_p": (0.0, 1.0, True),
    "min_p": (0.0, 1.0, False),
    "presence_penalty": (-2.0, 2.0, False),
    "frequency_penalty": (-2.0, 2.0, False),
    "repetition_penalty": (0.01, 100.0, False),  # less would overflow the logits
}
_INT_MAX = 2**31 - 1
INT_RANGES: dict[str, tuple[int, int, bool]] = {
    "n": (1, MAX_N, False),
    "top_k": (-1, _INT_MAX, False),
    "seed": (-(2**63), 2**63 - 1, True),
    "max_tokens": (1, _INT_MAX, True),
    "min_tokens": (0, _INT_MAX, False),
    "logprobs": (0, _INT_MAX, True),
    "prompt_logprobs": (0, _INT_MAX, True),
}


def _check_strings(name: str, values: Any, max_chars: int) -> None:
    if not isinstance(values, list) or len(values) > MAX_STOP:
        raise ParameterError(name, f"{name} must be a list of at most {MAX_STOP} strings.")
    if any(not isinstance(v, str) or not 0 < len(v) <= max_chars for v in values):
        raise ParameterError(name, f"{name} must hold non-empty strings of at most {max_chars} characters.")


def _check_ids(name: str, ids: Any, vocab_size: int | None) -> None:
    if not isinstance(ids, list) or (name != "allowed_token_ids" and len(ids) > MAX_TOKEN_LIST):
        raise ParameterError(name, f"{name} must be a list of at most {MAX_TOKEN_LIST} token ids.")
    top = vocab_size if vocab_size is not None else 2**31
    if any(isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < top for i in ids):
        raise ParameterError(name, f"{name} must hold token ids from 0 to {top - 1}.")
