"""One request inside the engine."""

from __future__ import annotations

import msgspec

from quire.engine.messages import EngineRequest, FinishReason, TokenLogprobs
from quire.engine.plan import SlotAdmit
from quire.kv.groups import SequencePages
from quire.kv.prefix import extend_chain, root_key
from quire.params import SamplingParams

NO_SLOT = -1


class Request:
    """Its ``computed`` tokens chase its ``known`` ones: prompt, output so far, and what steps in flight will sample."""

    __slots__ = (
        "_root",
        "admitted",
        "cached",
        "capacity",
        "computed",
        "depends_on",
        "eos",
        "epoch",
        "first_token_time",
        "id",
        "keys",
        "max_len",
        "message",
        "min_len",
        "order",
        "pages",
        "pending",
        "prompt_len",
        "prompt_logprobs",
        "scheduled_time",
        "slot",
        "stops",
        "tokens",
    )

    def __init__(self, message: EngineRequest, order: tuple[int, int], max_model_len: int, groups: int) -> None:
        params = message.params
        self.message = message
        self.id = message.request_id
        self.order = order  # sorts all requests: the first is served first and preempted last
        self.tokens = message.prompt_token_ids + message.output_token_ids
        self.prompt_len = len(message.prompt_token_ids)
        room = max_model_len - self.prompt_len
        self.max_len = self.prompt_len + (room if params.max_tokens is None else min(params.max_tokens, room))
        self.min_len = self.prompt_len + params.min_tokens
        self.eos = frozenset(() if params.ignore_eos else message.eos_token_ids)
        self.stops = frozenset(params.stop_token_ids)

        self.slot = NO_SLOT
        self.epoch = 0  # stays in a slot so far: what a step in flight brings for an earlier one is void
        self.computed = 0  # those of steps in flight included
        self.pending = 0  # tokens that steps in flight will sample
        self.capacity = 0  # tokens that the pages held now can take
        self.pages = SequencePages(groups)
        self.depends_on: list[Request] = []  # those whose pages this one shares while they are being filled
        self.keys: list[bytes] = []
        self._root: bytes | None = None

        self.admitted = False
        self.cached = 0
        self.scheduled_time: float | None = None
        self.first_token_time: float | None = None
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None
        if params.prompt_logprobs is not None and not message.output_token_ids:
            self.prompt_logprobs = [None]

    @property
    def known(self) -> int:
        return len(self.tokens) + self.pending

    @property
    def remaining(self) -> int:
        return self.known - self.computed

    @property
    def at_end(self) -> bool:
        """Nothing is left to compute once the steps in flight have landed."""
        return self.known >= self.max_len

    @property
    def reads_cache(self) -> bool:
        """Prompt logprobs need every prompt position computed."""
        return self.prompt_logprobs is None

    def extend_keys(self, page_size: int, pages: int) -> None:
        """Make ``keys`` cover the first ``pages`` full pages."""
        if self._root is None:
            self._root = root_key(page_size, self.message.cache_salt)
        extend_chain(self.keys, self._root, self.tokens, page_size, pages)

    def ending(self, token: int) -> tuple[FinishReason | None, int | None]:
        """Finish and stop reason after ``token``, the last of ``tokens``."""
        length = len(self.tokens)
        if length >= self.min_len:
            if token in self.eos:
                return "stop", None
            if token in self.stops:
                return "stop", token
        return ("length" if length >= self.max_len else None), None

    def slot_admit(self, vocab_size: int) -> SlotAdmit:
        message, params = self.message, self.message.params
        if params.prompt_logprobs is not None and self.prompt_logprobs is None:
            params = _without_prompt_logprobs(params)
        blocked = sorted(t for t in self.eos | self.stops if t < vocab_size) if params.min_tokens else []
        return SlotAdmit(
            slot=self.slot,
            token_ids=self.tokens.copy(),
            prompt_len=self.prompt_len,
            computed=self.computed,
            params=params,
            seed=message.seed,
            stop_token_ids=blocked,
            bad_words_token_ids=message.bad_words_token_ids,
        )

    def restart(self) -> None:
        """Nothing is computed any more; known tokens stay."""
        self.slot = NO_SLOT
        self.computed = self.pending = 0
        self.capacity = 0
        self.depends_on = []
        if self.prompt_logprobs is not None:
            self.prompt_logprobs = [None]


def _without_prompt_logprobs(params: SamplingParams) -> SamplingParams:
    return msgspec.structs.replace(params, prompt_logprobs=None)
