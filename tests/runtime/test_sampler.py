"""Logit edits against Transformers' processors, log probabilities against log_softmax, independence of neighbours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from quire.engine.messages import TokenLogprobs
from quire.engine.plan import KVGroup, SlotAdmit
from quire.ops.backend import backend
from quire.params import SamplingParams
from quire.runtime.sampler import Sampler
from quire.runtime.state import SlotState

VOCAB = 50
PROMPT = [3, 4, 5, 4, 9]
OUTPUT = [7, 7, 4]


def logits(rows: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


class Bench:
    """A sampler whose slots hold ``PROMPT`` and ``OUTPUT``."""

    def __init__(self, *params: SamplingParams, **admit: Any) -> None:
        self.sampler = Sampler(backend("cpu"), VOCAB, torch.device("cpu"))
        self.state = SlotState(len(params), 64, 16, [KVGroup(None, 4)])
        self.slots = list(range(len(params)))
        for slot, p in enumerate(params):
            fields: dict[str, Any] = {"stop_token_ids": [], "bad_words_token_ids": [], "seed": 11, **admit}
            a = SlotAdmit(slot, PROMPT + OUTPUT, len(PROMPT), 0, p, **fields)
            self.sampler.admit(a)
            self.state.admit(a)

    def edited(self, values: torch.Tensor) -> torch.Tensor:
        """The logits as they are when the sampling op sees them."""
        values = values.clone()
        self.sample(values)
        return values

    def sample(self, values: torch.Tensor) -> tuple[list[int], dict[int, TokenLogprobs]]:
        step = self.state.sample_step(self.slots)
        tokens, logprobs = self.sampler.sample(values, dict(enumerate(self.slots)), step, self.state)
        return tokens.tolist(), logprobs.by_slot() if logprobs else {}


def greedy(**params: Any) -> SamplingParams:
    return SamplingParams(temperature=0.0, **params)


def processed(processor: LogitsProcessor, values: torch.Tensor) -> torch.Tensor:
    return processor(torch.tensor([PROMPT + OUTPUT]), values.clone())


def test_repetition_penalty_counts_prompt_and_output() -> None:
    wanted = processed(RepetitionPenaltyLogitsProcessor(1.7), logits())
    torch.testing.assert_close(Bench(greedy(repetition_penalty=1.7)).edited(logits()), wanted)


def test_presence_and_frequency_count_output_only() -> None:
    wanted = logits()
    wanted[0, 7] -= 2 * 0.5 + 1.25
    wanted[0, 4] -= 0.5 + 1.25
    torch.testing.assert_close(Bench(greedy(frequency_penalty=0.5, presence_penalty=1.25)).edited(logits()), wanted)


def test_counts_follow_sampled_tokens() -> None:
    bench = Bench(greedy(frequency_penalty=2.0))
    values = torch.zeros(1, VOCAB)
    values[0, 20] = 3.0
    values[0, 21] = 2.0
    picks = []
    for _ in range(3):
        tokens, _ = bench.sample(values.clone())
        bench.state.append(0, tokens[0])
        picks += tokens
    assert picks == [20, 21, 20]


def test_logit_bias() -> None:
    wanted = processed(SequenceBiasLogitsProcessor([[[9], 2.5], [[1], -100.0]]), logits())
    torch.testing.assert_close(Bench(greedy(logit_bias={9: 2.5, 1: -100.0})).edited(logits()), wanted)


def test_bad_words() -> None:
    words = [[12], [7, 4, 30], [9, 31]]
    wanted = processed(NoBadWordsLogitsProcessor(words, eos_token_id=None), logits())
    torch.testing.assert_close(Bench(greedy(), bad_words_token_ids=words).edited(logits()), wanted)


@pytest.mark.parametrize("min_tokens", [3, 4])
def test_min_tokens_blocks_stop_ids(min_tokens: int) -> None:
    processor = MinNewTokensLengthLogitsProcessor(len(PROMPT), min_tokens, eos_token_id=[2, 8])
    bench = Bench(greedy(min_tokens=min_tokens), stop_token_ids=[2, 8])
    torch.testing.assert_close(bench.edited(logits()), processed(processor, logits()))


def test_allowed_token_ids() -> None:
    allowed = [1, 17, 40]
    edited = Bench(greedy(allowed_token_ids=allowed)).edited(logits())
    assert edited.isfinite().nonzero()[:, 1].tolist() == allowed


def test_logprobs_are_of_the_raw_logits() -> None:
    values = logits()
    bench = Bench(SamplingParams(temperature=0.3, logprobs=4, logit_bias={5: 50.0}))
    tokens, logprobs = bench.sample(values.clone())
    found = logprobs[0]
    assert tokens == [5]
    assert found is not None
    raw = torch.log_softmax(values[0], 0)
    top = raw.topk(4)
    assert found.token_ids == [5, *top.indices.tolist()]
    torch.testing.assert_close(torch.tensor(found.logprobs), torch.cat([raw[5:6], top.values]))
    assert found.ranks == [int((raw > raw[5]).sum()) + 1, 1, 2, 3, 4]


def test_a_row_that_is_not_a_number_fails_alone() -> None:
    values = logits(3)
    values[1, 10] = float("nan")
    bench = Bench(greedy(), SamplingParams(), greedy(logprobs=2))
    tokens, _ = bench.sample(values.clone())
    assert tokens[1] == -1
    assert [tokens[0], tokens[2]] == [int(values[0].argmax()), int(values[2].argmax())]


def test_a_seeded_row_does_not_depend_on_its_neighbours() -> None:
    params = [
        SamplingParams(temperature=1.3, top_p=0.9),
        SamplingParams(temperature=0.7, top_k=5, repetition_penalty=1.2),
        SamplingParams(min_p=0.05),
    ]
    values = logits(3, seed=5)
    together, _ = Bench(*params).sample(values.clone())
    alone = []
    for row, p in enumerate(params):
        bench = Bench(p)
        alone += bench.sample(values[row : row + 1].clone())[0]
    assert together == alone
