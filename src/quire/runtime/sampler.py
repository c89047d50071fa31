"""From logits to tokens: masks, biases and penalties of each request, log probabilities, then one sampling op.

The order is vLLM's: log probabilities of the raw logits; allowed ids, bad words, min_tokens, logit_bias; repetition,
frequency and presence penalties; temperature, min_p, top_k, top_p (``ops.sample``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from quire.engine.messages import TokenLogprobs
from quire.engine.plan import SlotAdmit
from quire.ops.backend import Ops, SampleStep
from quire.params import SamplingParams
from quire.runtime.state import SlotState

_NEVER = float("-inf")
# Rows of logits whose log probabilities are computed at once: bounds the work space at this many vocabularies.
LOGPROB_ROWS = 32


@dataclass
class _Penalties:
    """Tokens a slot has seen, counted as they come: ``counts [V]`` of its output, ``in_prompt [V]``."""

    counts: torch.Tensor
    in_prompt: torch.Tensor


class Sampler:
    def __init__(self, ops: Ops, slots: int, vocab_size: int) -> None:
        self._ops = ops
        self._vocab_size = vocab_size
        self._admits: dict[int, SlotAdmit] = {}
        self._penalties: dict[int, _Penalties] = {}
        self._edited: set[int] = set()
        self._temperature = np.zeros(slots, np.float32)
        self._top_p = np.ones(slots, np.float32)
        self._min_p = np.zeros(slots, np.float32)
        self._top_k = np.zeros(slots, np.int32)
        self._seed = np.zeros(slots, np.int64)

    def admit(self, admit: SlotAdmit) -> None:
        slot, params = admit.slot, admit.params
        self.release(slot)
        self._admits[slot] = admit
        self._temperature[slot] = params.temperature
        self._top_p[slot] = params.top_p
        self._min_p[slot] = params.min_p
        self._top_k[slot] = params.top_k
        self._seed[slot] = admit.seed
        if params.repetition_penalty != 1 or params.frequency_penalty or params.presence_penalty:
            self._penalties[slot] = self._count(admit)
        if slot in self._penalties or _edits_logits(admit):
            self._edited.add(slot)

    def release(self, slot: int) -> None:
        self._admits.pop(slot, None)
        self._penalties.pop(slot, None)
        self._edited.discard(slot)

    def params(self, slot: int) -> SamplingParams:
        return self._admits[slot].params

    def sample(
        self, logits: torch.Tensor, slots: Sequence[int], state: SlotState
    ) -> tuple[list[int], list[TokenLogprobs | None]]:
        """Tokens of the rows of ``logits [R, V]`` (overwritten), -1 where a row is not a number, and logprobs."""
        wanted = [row for row, slot in enumerate(slots) if self.params(slot).logprobs is not None]
        raw = logits[wanted].clone() if wanted else logits
        for row, slot in enumerate(slots):
            if slot in self._edited:
                self._edit(logits[row], slot, state)
        index = np.asarray(slots)
        step = SampleStep(
            temperature=torch.from_numpy(self._temperature[index]),
            top_k=torch.from_numpy(self._top_k[index]),
            top_p=torch.from_numpy(self._top_p[index]),
            min_p=torch.from_numpy(self._min_p[index]),
            seed=torch.from_numpy(self._seed[index]),
            position=torch.from_numpy(state.known[index]),
        )
        tokens: list[int] = self._ops.sample(logits, step).tolist()
        for slot, token in zip(slots, tokens, strict=True):
            if token >= 0 and slot in self._penalties:
                self._penalties[slot].counts[token] += 1
        logprobs: list[TokenLogprobs | None] = [None] * len(slots)
        if wanted:
            top = [self.params(slots[row]).logprobs or 0 for row in wanted]
            found = token_logprobs(raw, [max(tokens[row], 0) for row in wanted], top)
            for row, value in zip(wanted, found, strict=True):
                logprobs[row] = value
        return tokens, logprobs

    def _count(self, admit: SlotAdmit) -> _Penalties:
        tokens = torch.tensor(admit.token_ids, dtype=torch.int64)
        prompt, output = tokens[: admit.prompt_len], tokens[admit.prompt_len :]
        return _Penalties(
            counts=torch.bincount(output, minlength=self._vocab_size).int(),
            in_prompt=torch.bincount(prompt, minlength=self._vocab_size) > 0,
        )

    def _edit(self, logits: torch.Tensor, slot: int, state: SlotState) -> None:
        admit, params = self._admits[slot], self.params(slot)
        if params.allowed_token_ids is not None:
            allowed = torch.tensor(params.allowed_token_ids)
            kept = logits[allowed]
            logits.fill_(_NEVER)
            logits[allowed] = kept
        for words in admit.bad_words_token_ids:
            known = int(state.known[slot])
            before = len(words) - 1
            if before <= state.output_len(slot) and state.tokens[slot, known - before : known].tolist() == words[:-1]:
                logits[words[-1]] = _NEVER
        if admit.stop_token_ids and state.output_len(slot) < params.min_tokens:
            logits[torch.tensor(admit.stop_token_ids)] = _NEVER
        if params.logit_bias:
            ids = torch.tensor(list(params.logit_bias))
            logits[ids] += torch.tensor(list(params.logit_bias.values()), dtype=logits.dtype)
        if slot in self._penalties:
            _penalise(logits, self._penalties[slot], params)


def token_logprobs(logits: torch.Tensor, tokens: Sequence[int], top: Sequence[int]) -> list[TokenLogprobs]:
    """Log probabilities of ``tokens`` and of the ``top`` likeliest, for each row of ``logits [R, V]``."""
    result: list[TokenLogprobs] = []
    for start in range(0, len(tokens), LOGPROB_ROWS):
        rows = slice(start, start + LOGPROB_ROWS)
        logprobs = torch.log_softmax(logits[rows], dim=-1)
        chosen = torch.tensor(tokens[rows])[:, None]
        own = logprobs.gather(1, chosen)
        ranks = (logprobs > own).sum(dim=1) + 1
        values, ids = logprobs.topk(max(top[rows]), dim=-1) if max(top[rows]) else (own[:, :0], chosen[:, :0])
        for row, k in enumerate(top[rows]):
            result.append(
                TokenLogprobs(
                    [int(chosen[row]), *ids[row, :k].tolist()],
                    [float(own[row]), *values[row, :k].tolist()],
                    [int(ranks[row]), *range(1, k + 1)],
                )
            )
    return result


def _edits_logits(admit: SlotAdmit) -> bool:
    params = admit.params
    return bool(
        params.allowed_token_ids is not None
        or admit.bad_words_token_ids
        or params.logit_bias
        or (admit.stop_token_ids and params.min_tokens)
    )


def _penalise(logits: torch.Tensor, seen: _Penalties, params: SamplingParams) -> None:
    if params.repetition_penalty != 1:
        ids = (seen.in_prompt | (seen.counts > 0)).nonzero().squeeze(1)
        values = logits[ids]
        penalty = params.repetition_penalty
        logits[ids] = torch.where(values > 0, values / penalty, values * penalty)
    if params.frequency_penalty or params.presence_penalty:
        logits -= params.frequency_penalty * seen.counts + params.presence_penalty * (seen.counts > 0)
