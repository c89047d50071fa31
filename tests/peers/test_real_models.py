"""SmolLM2, Qwen2.5-Coder and Gemma 3 from GGUF against Transformers on the same dequantised weights.

Transformers is run once over prompt and answer: a greedy token is right if its logit is within 1e-3 of the highest.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from quire import LLM, RequestOutput, SamplingParams

TIE = 1e-3
TOKENS = 96
PROMPTS = [
    "The capital of France is",
    "def fibonacci(n: int) -> int:\n",
    "Once upon a time, in a village by the sea, there lived",
    "Water boils at 100 degrees because",
]


class Pair:
    """A model in Quire and in Transformers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.llm = LLM(str(path), max_model_len=2048, cpu_activations="float32")
        self.hf: Any = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)

    def logits(self, ids: list[int]) -> torch.Tensor:
        """What follows each token of ``ids``, by Transformers."""
        with torch.no_grad():
            logits: torch.Tensor = self.hf(torch.tensor([ids])).logits[0].float()
        return logits

    def check_greedy(self, output: RequestOutput) -> None:
        prompt, answer = output.prompt_token_ids, output.outputs[0].token_ids
        logits = self.logits(prompt + answer)[len(prompt) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(answer)[:, None]).squeeze(1)
        short = logits.max(dim=1).values - chosen
        assert short.max() < TIE, f"token {int(short.argmax())} of {len(answer)} is {float(short.max()):.4f} too low"


@pytest.fixture(params=["smollm2_path", "qwen_path", "gemma_path"], scope="module")
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    pair = Pair(request.getfixturevalue(request.param))
    yield pair
    del pair.llm, pair.hf


def test_greedy_tokens_of_a_batch(pair: Pair) -> None:
    params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    for output in pair.llm.generate(PROMPTS, params, use_tqdm=False):
        assert len(output.outputs[0].token_ids) == TOKENS
        pair.check_greedy(output)


def test_long_prompt_in_chunks_and_from_the_cache(pair: Pair) -> None:
    text = "".join(f"Item {i} costs {i * 7 % 31} coins. " for i in range(90)) + "\nThe dearest item is"
    params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    cold, warm = (pair.llm.generate(text, params, use_tqdm=False)[0] for _ in range(2))
    assert len(cold.prompt_token_ids) > 700
    assert warm.num_cached_tokens > 600
    pair.check_greedy(cold)
    pair.check_greedy(warm)


def test_logprobs(pair: Pair) -> None:
    params = SamplingParams(temperature=0.8, seed=3, max_tokens=24, logprobs=5, prompt_logprobs=3, ignore_eos=True)
    output = pair.llm.generate(PROMPTS[2], params, use_tqdm=False)[0]
    prompt, answer = output.prompt_token_ids, output.outputs[0].token_ids
    wanted = pair.logits(prompt + answer).log_softmax(dim=1)
    assert output.prompt_logprobs is not None
    assert output.outputs[0].logprobs is not None
    assert output.prompt_logprobs[0] is None
    found = [p for p in output.prompt_logprobs if p is not None] + output.outputs[0].logprobs
    assert len(found) == len(prompt) - 1 + len(answer)
    for row, (token, logprobs) in enumerate(zip((prompt + answer)[1:], found, strict=True)):
        assert token in logprobs
        for token_id, value in logprobs.items():
            assert value.logprob == pytest.approx(float(wanted[row, token_id]), abs=TIE)
            assert value.rank is not None
            above = [(wanted[row] > wanted[row, token_id] + tie).sum() for tie in (TIE, -TIE)]
            assert above[0] <= value.rank - 1 <= above[1]


def test_seeded_request_is_the_same_alone_and_in_a_batch(pair: Pair) -> None:
    params = SamplingParams(temperature=1.0, seed=42, max_tokens=32, ignore_eos=True)
    alone = pair.llm.generate(PROMPTS[0], params, use_tqdm=False)[0].outputs[0].token_ids
    others = [SamplingParams(temperature=1.2, seed=i, max_tokens=20 + i, ignore_eos=True) for i in range(3)]
    batch = pair.llm.generate([*PROMPTS[1:], PROMPTS[0]], [*others, params], use_tqdm=False)
    assert batch[3].outputs[0].token_ids == alone


def test_answers_sensibly(smollm2_path: Path) -> None:
    llm = LLM(str(smollm2_path))
    answer = llm.chat(
        [{"role": "user", "content": "What is the capital of Japan?"}],
        SamplingParams(temperature=0, max_tokens=64),
        use_tqdm=False,
    )[0].outputs[0]
    assert "Tokyo" in answer.text
    assert answer.finish_reason == "stop"


def test_perplexity_by_default(pair: Pair) -> None:
    """With activations rounded to 8 bits it is that of Transformers in float32 within 1 %."""
    text = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text()[:4000]
    output = LLM(str(pair.path), max_model_len=2048).generate(text, SamplingParams(max_tokens=1, prompt_logprobs=0))[0]
    ids = output.prompt_token_ids
    assert output.prompt_logprobs is not None
    got = [entry[token].logprob for entry, token in zip(output.prompt_logprobs[1:], ids[1:], strict=True) if entry]
    want = pair.logits(ids)[:-1].log_softmax(dim=1).gather(1, torch.tensor(ids[1:])[:, None]).mean()
    assert abs(sum(got) / len(got) - float(want)) < 0.01
