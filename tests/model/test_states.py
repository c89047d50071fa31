"""Pages of states: found again, rewritten by a retry, never mistaken for another sequence's; and whole requests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from quire import LLM, SamplingParams
from quire.model.spec import DeltaSpec
from quire.ops.reference.delta import sequence_rule, step_rule
from quire.ops.states import StatePages
from tests.model.agreement import TOKENS, expected, random_model
from tests.model.test_moe_families import CASES, COMMON

SPEC = DeltaSpec(key_heads=1, value_heads=2, key_dim=4, value_dim=8, kernel=3)
FIRST, SECOND = torch.tensor([0]), torch.tensor([1])


def at(position: int) -> torch.Tensor:
    return torch.tensor([position])


def save(pages: StatePages, page: torch.Tensor, source: torch.Tensor, before: int, position: int, value: float) -> None:
    inputs, state = torch.full((1, SPEC.channels, 2), value), torch.full((1, 2, 4, 8), value)
    pages.save(page, source, at(before), at(position), inputs, state)


def value(pages: StatePages, page: torch.Tensor, position: int) -> float:
    inputs, state = pages.load(page, at(position))
    assert inputs.unique().tolist() == state.unique().tolist() or inputs.isnan().all()
    return float(state.flatten()[0])


def test_a_step_that_is_computed_again_finds_its_state() -> None:
    pages = StatePages.new(SPEC, 2, 16, torch.device("cpu"))
    assert value(pages, FIRST, -1) == 0.0
    save(pages, FIRST, FIRST, -1, 4, 1.0)
    for attempt in (2.0, 3.0):
        assert value(pages, FIRST, 4) == 1.0
        save(pages, FIRST, FIRST, 4, 5, attempt)
    save(pages, FIRST, FIRST, 5, 15, 4.0)
    for attempt in (5.0, 6.0):  # into the next page
        assert value(pages, FIRST, 15) == 4.0
        save(pages, SECOND, FIRST, 15, 16, attempt)
    assert value(pages, SECOND, 16) == 6.0


def test_a_page_forgets_the_sequence_before() -> None:
    pages = StatePages.new(SPEC, 2, 16, torch.device("cpu"))
    save(pages, FIRST, FIRST, -1, 4, 1.0)
    save(pages, FIRST, FIRST, 4, 5, 2.0)
    save(pages, FIRST, FIRST, -1, 3, 7.0)  # another sequence begins here
    assert torch.isnan(torch.tensor(value(pages, FIRST, 5)))
    assert torch.isnan(torch.tensor(value(pages, FIRST, 4)))
    assert value(pages, FIRST, 3) == 7.0


def test_chunks_give_what_single_tokens_give() -> None:
    torch.manual_seed(0)
    tokens, heads = 150, 3
    q, k = (torch.nn.functional.normalize(torch.randn(tokens, heads, 16), dim=-1) for _ in range(2))
    v, g, beta = torch.randn(tokens, heads, 24), -torch.rand(tokens, heads), torch.rand(tokens, heads)
    state = torch.randn(heads, 16, 24)
    outputs, last = sequence_rule(q, k, v, g, beta, state)
    for t in range(tokens):
        output, after = step_rule(q[t : t + 1], k[t : t + 1], v[t : t + 1], g[t : t + 1], beta[t : t + 1], state[None])
        torch.testing.assert_close(output[0], outputs[t], rtol=1e-4, atol=1e-5)
        state = after[0]
    torch.testing.assert_close(state, last, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_next"])
def test_requests_share_prefixes_and_are_preempted(tmp_path: Path, name: str) -> None:
    """Tokens are those of Transformers alone, whatever else is in the batch and however short pages are."""
    model = random_model({**COMMON, **CASES[name]}, tmp_path)
    prompts = [TOKENS[:48] + TOKENS[5 * i : 5 * i + 3 + i] for i in range(6)] + [TOKENS[:33], TOKENS[:48]]
    settings = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True, detokenize=False)
    llm = LLM(str(tmp_path), skip_tokenizer_init=True, max_model_len=112, page_size=16, max_num_seqs=4, threads=1)
    for _ in range(2):  # the second time from the cache
        outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], settings, use_tqdm=False)
        for prompt, output in zip(prompts, outputs, strict=True):
            tokens = [*prompt, *output.outputs[0].token_ids]
            logits = expected(model, tokens)[len(prompt) - 1 : -1]
            chosen = logits.gather(1, torch.tensor(tokens[len(prompt) :])[:, None])[:, 0]
            assert (logits.max(dim=1).values - chosen).max() < 1e-3
