"""Each family, tiny and random, against Transformers: logits at 1e-4 and the same greedy tokens, however it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.model.harness import PAGE, Harness

COMMON = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "vocab_size": 320,
    "max_position_embeddings": 256,
}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CASES: dict[str, dict[str, Any]] = {
    "llama": dict(model_type="llama", **COMMON, **HEADS),
    "llama-mha-tied": dict(
        model_type="llama", **COMMON, num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True
    ),
    "llama-biases": dict(model_type="llama", **COMMON, **HEADS, attention_bias=True, mlp_bias=True),
    "llama3-rope": dict(model_type="llama", **COMMON, **HEADS, rope_parameters=LLAMA3_ROPE),
    "llama-linear-rope": dict(
        model_type="llama",
        **COMMON,
        **HEADS,
        rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0},
    ),
    "mistral-window": dict(model_type="mistral", **COMMON, **HEADS, head_dim=32, sliding_window=24),
    "qwen2": dict(model_type="qwen2", **COMMON, **HEADS),
    "gemma3": dict(
        model_type="gemma3_text",
        **{**COMMON, "num_hidden_layers": 7},
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=32,
        sliding_window=24,
        query_pre_attn_scalar=32,
    ),
}


@pytest.fixture(params=CASES, scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    torch.manual_seed(0)
    settings = dict(CASES[request.param])
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms start as constants, which would hide mistakes
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.1)
    path = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(path)
    return model, path


@pytest.fixture(scope="module")
def tokens() -> list[int]:
    return torch.randint(0, 320, (70,), generator=torch.Generator().manual_seed(1)).tolist()


def expected(model: Any, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0]


def close(actual: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(actual, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "chunks", [(70,), (1, 5, 16, 48), (33, 37), (64,) + (1,) * 6], ids=["one", "uneven", "two", "decode"]
)
def test_logits_do_not_depend_on_chunks(case: tuple[Any, Path], tokens: list[int], chunks: tuple[int, ...]) -> None:
    model, path = case
    harness = Harness(path, [tokens])
    logits = torch.cat([harness.step({0: count})[0] for count in chunks])
    close(logits, expected(model, tokens))


def test_batch_of_prefill_chunk_and_decode(case: tuple[Any, Path], tokens: list[int]) -> None:
    model, path = case
    others = [tokens[::-1], tokens[5:60], tokens[:40]]
    harness = Harness(path, others)
    harness.step({0: 69, 1: 20})
    last, middle, first = harness.step({0: 1, 1: 30, 2: 40})
    close(last, expected(model, others[0])[-1:])
    close(middle, expected(model, others[1])[20:50])
    close(first, expected(model, others[2]))


def test_shared_prefix_pages(case: tuple[Any, Path], tokens: list[int]) -> None:
    model, path = case
    fork = tokens[: 3 * PAGE] + tokens[:17]
    harness = Harness(path, [tokens, fork])
    harness.step({0: 70})
    harness.share(0, 1, 3)
    close(harness.step({1: 17})[0], expected(model, fork)[-17:])


def test_greedy_tokens(case: tuple[Any, Path], tokens: list[int]) -> None:
    model, path = case
    prompt = tokens[:20]
    wanted = model.generate(
        torch.tensor([prompt]), max_new_tokens=40, min_new_tokens=40, do_sample=False, use_cache=False
    )[0].tolist()
    harness = Harness(path, [wanted])
    logits = harness.step({0: len(wanted)})[0]
    assert logits[19:-1].argmax(dim=1).tolist() == wanted[20:]
