"""From logits to tokens: masks, biases and penalties of each request, log probabilities, then one sampling op.

The order is vLLM's: log probabilities of the raw logits; allowed ids, bad words, min_tokens, logit_bias; repetition,
frequency and presence penalties; temperature, min_p, top_k, top_p (``ops.sample``). Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from quire.engine.messages import TokenLogprobs
from quire.engine.plan import SlotAdmit, SlotWork
from quire.model.decoder import Model
from quire.ops.backend import Ops, SampleStep
from quire.params import SamplingParams

_NEVER = float("-inf")
# Rows of logits whose log probabilities are computed at once: bounds the work space at this many vocabularies.
LOGPROB_ROWS = 32


class History(Protocol):
    """What the sampler asks of the slots' state."""

    tokens: torch.Tensor  # [slots, max_len + 1], on the device

    def known_len(self, slot: int) -> int:
        """Tokens before the one to be sampled."""
        ...

    def output_len(self, slot: int) -> int: ...


@dataclass(frozen=True)
class LogprobRows:
    """For each row the token itself, then the likeliest: ids, log probabilities; and the token's rank."""

    ids: torch.Tensor  # [R, 1 + k] int64
    values: torch.Tensor  # [R, 1 + k] float32
    ranks: torch.Tensor  # [R] int64
    top: Sequence[int]  # how many of the k each row asked for

    def to_host(self) -> LogprobRows:
        """The same in host memory, once the device is done with what was asked of it so far."""
        ids, values, ranks = (t.to("cpu", non_blocking=True) for t in (self.ids, self.values, self.ranks))
        return LogprobRows(ids, values, ranks, self.top)

    def lists(self) -> list[TokenLogprobs]:
        rows = zip(self.ids.tolist(), self.values.tolist(), self.ranks.tolist(), self.top, strict=True)
        return [TokenLogprobs(i[: k + 1], v[: k + 1], [rank, *range(1, k + 1)]) for i, v, rank, k in rows]


@dataclass(frozen=True)
class SlotLogprobs:
    slots: Sequence[int]
    rows: LogprobRows

    def by_slot(self) -> dict[int, TokenLogprobs]:
        return dict(zip(self.slots, self.rows.lists(), strict=True))


class Sampler:
    def __init__(self, ops: Ops, vocab_size: int, device: torch.device) -> None:
        self._ops = ops
        self._vocab_size = vocab_size
        self._device = device
        self._params: dict[int, SamplingParams] = {}
        self._edits: dict[int, _Edits] = {}

    def admit(self, admit: SlotAdmit) -> None:
        self.release(admit.slot)
        self._params[admit.slot] = admit.params
        edits = _Edits.of(admit, self._vocab_size, self._device)
        if edits is not None:
            self._edits[admit.slot] = edits

    def release(self, slot: int) -> None:
        self._params.pop(slot, None)
        self._edits.pop(slot, None)

    def params(self, slot: int) -> SamplingParams:
        return self._params[slot]

    def wants_prompts(self, work: Iterable[SlotWork]) -> bool:
        """Whether any of the slots asked for log probabilities of its prompt."""
        return any(self._params[w.slot].prompt_logprobs is not None for w in work)

    def sample(
        self, logits: torch.Tensor, slots: Mapping[int, int], step: SampleStep, history: History
    ) -> tuple[torch.Tensor, SlotLogprobs | None]:
        """A token for each row of ``logits [R, V]`` (may be overwritten), -1 where a row is not a number; logprobs.

        ``slots``: the rows that count, and whose they are.
        """
        wanted = [row for row, slot in slots.items() if self._params[slot].logprobs is not None]
        raw = logits[wanted] if wanted else logits
        edited = [(row, self._edits[slot], slot) for row, slot in slots.items() if slot in self._edits]
        if edited:
            logits = logits.float()
        for row, edits, slot in edited:
            edits.apply(logits[row], slot, history)
        tokens = self._ops.sample(logits, step)
        for row, edits, _ in edited:
            edits.count(tokens[row])
        if not wanted:
            return tokens, None
        own = [slots[row] for row in wanted]
        top = [self._params[slot].logprobs or 0 for slot in own]
        return tokens, SlotLogprobs(own, token_logprobs(raw, tokens[wanted].clamp(min=0), top))


@dataclass
class _Edits:
    """What a request changes of its logits, as tensors on the device."""

    params: SamplingParams
    allowed: torch.Tensor | None
    bad_words: list[tuple[torch.Tensor, int]]  # the tokens before the last, and the last
    stops: torch.Tensor | None  # impossible before min_tokens
    bias_ids: torch.Tensor | None
    bias: torch.Tensor | None
    seen: _Seen | None

    @classmethod
    def of(cls, admit: SlotAdmit, vocab_size: int, device: torch.device) -> _Edits | None:
        """``None``: the request samples from the logits as they are."""
        params = admit.params

        def ids(values: Sequence[int]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.int64, device=device)

        edits = cls(
            params,
            allowed=None if params.allowed_token_ids is None else ids(params.allowed_token_ids),
            bad_words=[(ids(words[:-1]), words[-1]) for words in admit.bad_words_token_ids],
            stops=ids(admit.stop_token_ids) if admit.stop_token_ids and params.min_tokens else None,
            bias_ids=ids(list(params.logit_bias)) if params.logit_bias else None,
            bias=torch.tensor(list(params.logit_bias.values()), device=device) if params.logit_bias else None,
            seen=_Seen.of(admit, vocab_size, device),
        )
        return edits if edits._any() else None

    def _any(self) -> bool:
        parts = (self.allowed, self.stops, self.bias_ids, self.seen)
        return bool(self.bad_words) or any(part is not None for part in parts)

    def apply(self, logits: torch.Tensor, slot: int, history: History) -> None:
        """Change one row of logits, ``[V]``."""
        if self.allowed is not None:
            kept = logits[self.allowed]
            logits.fill_(_NEVER)
            logits[self.allowed] = kept
        known, output = history.known_len(slot), history.output_len(slot)
        for before, last in self.bad_words:
            if len(before) <= output:
                repeated = (history.tokens[slot, known - len(before) : known] == before).all()
                logits[last] = torch.where(repeated, _NEVER, logits[last])
        if self.stops is not None and output < self.params.min_tokens:
            logits[self.stops] = _NEVER
        if self.bias_ids is not None and self.bias is not None:
            logits[self.bias_ids] += self.bias.to(logits.dtype)
        if self.seen is not None:
            self.seen.penalise(logits, self.params)

    def count(self, token: torch.Tensor) -> None:
        """``token``: what was sampled, a tensor of no dimensions."""
        if self.seen is not None:
            self.seen.counts[token.clamp(min=0)] += 1


@dataclass
class _Seen:
    """Tokens a slot has seen, counted as they come: ``counts [V]`` of its output, ``in_prompt [V]``."""

    counts: torch.Tensor
    in_prompt: torch.Tensor

    @classmethod
    def of(cls, admit: SlotAdmit, vocab_size: int, device: torch.device) -> _Seen | None:
        params = admit.params
        if params.repetition_penalty == 1 and not params.frequency_penalty and not params.presence_penalty:
            return None
        tokens = torch.tensor(admit.token_ids, dtype=torch.int64)
        prompt, output = tokens[: admit.prompt_len], tokens[admit.prompt_len :]
        return cls(
            counts=torch.bincount(output, minlength=vocab_size).int().to(device),
            in_prompt=(torch.bincount(prompt, minlength=vocab_size) > 0).to(device),
        )

    def penalise(self, logits: torch.Tensor, params: SamplingParams) -> None:
        in_output = self.counts > 0
        if params.repetition_penalty != 1:
            penalty = params.repetition_penalty
            changed = torch.where(logits > 0, logits / penalty, logits * penalty)
            torch.where(self.in_prompt | in_output, changed, logits, out=logits)
        if params.frequency_penalty or params.presence_penalty:
            logits -= params.frequency_penalty * self.counts + params.presence_penalty * in_output


def prompt_logprobs(decoder: Model, hidden: torch.Tensor, targets: torch.Tensor, top: int) -> Iterator[LogprobRows]:
    """Log probabilities of the tokens ``targets [R]`` that follow the positions of ``hidden [R, hidden]``, in parts."""
    for start in range(0, len(targets), LOGPROB_ROWS):
        part = targets[start : start + LOGPROB_ROWS]
        yield token_logprobs(decoder.logits(hidden[start : start + len(part)]), part, [top] * len(part))


def token_logprobs(logits: torch.Tensor, tokens: torch.Tensor, top: Sequence[int]) -> LogprobRows:
    """Log probabilities of ``tokens [R]`` and of the ``top`` likeliest, for each row of ``logits [R, V]``."""
    most = max(top)
    parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    for start in range(0, len(tokens), LOGPROB_ROWS):
        rows = slice(start, start + LOGPROB_ROWS)
        logprobs = torch.log_softmax(logits[rows].float(), dim=-1)
        ids = tokens[rows, None]
        values = logprobs.gather(1, ids)
        ranks = (logprobs > values).sum(dim=1) + 1
        if most:
            best, best_ids = logprobs.topk(most, dim=-1)
            ids, values = torch.cat([ids, best_ids], dim=1), torch.cat([values, best], dim=1)
        parts.append((ids, values, ranks))
    ids, values, ranks = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return LogprobRows(ids, values, ranks, top)
