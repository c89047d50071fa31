"""A tiny random Transformers model, and the ways in which a decoder must agree with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.model.harness import PAGE, Harness

VOCAB = 320
TOKENS = torch.randint(0, VOCAB, (70,), generator=torch.Generator().manual_seed(1)).tolist()
Open = Callable[[list[list[int]]], Harness]
Close = Callable[[torch.Tensor, torch.Tensor], None]


def random_model(settings: Mapping[str, Any], path: Path) -> Any:
    """The model that ``settings`` describe, saved to ``path``. ``attention``: Transformers' way to compute it."""
    torch.manual_seed(0)
    settings = dict(settings)
    attention = settings.pop("attention", "eager")
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    how = {"attn_implementation": attention, "experts_implementation": "eager"}  # others need aligned sizes on a GPU
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **how).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms start as constants, which would hide mistakes
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.1)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(0.0, 0.1)
    model.save_pretrained(path)
    return model


def expected(model: Any, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([tokens])).logits[0]
    return logits


def close(actual: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(actual, wanted, atol=1e-4, rtol=1e-4)


def check_chunks(model: Any, opened: Open, close: Close = close) -> None:
    wanted = expected(model, TOKENS)
    for chunks in ((70,), (1, 5, 16, 48), (64,) + (1,) * 6):
        harness = opened([TOKENS])
        close(torch.cat([harness.step({0: count})[0] for count in chunks]), wanted)


def check_batch(model: Any, opened: Open, close: Close = close) -> None:
    """Prefill, a chunk and decode in one step."""
    others = [TOKENS[::-1], TOKENS[5:60], TOKENS[:40]]
    harness = opened(others)
    harness.step({0: 69, 1: 20})
    last, middle, first = harness.step({0: 1, 1: 30, 2: 40})
    close(last, expected(model, others[0])[-1:])
    close(middle, expected(model, others[1])[20:50])
    close(first, expected(model, others[2]))
    harness = opened(others)
    for counts in ({0: 69, 1: 20}, {0: 1, 1: 30, 2: 40}):
        ends = harness.last(counts)
    for end, tokens, at in zip(ends, others, (70, 50, 40), strict=True):
        close(end, expected(model, tokens)[at - 1 : at])


def check_shared_prefix(model: Any, opened: Open, close: Close = close) -> None:
    fork = TOKENS[: 3 * PAGE] + TOKENS[:17]
    harness = opened([TOKENS, fork])
    harness.step({0: 70})
    harness.share(0, 1, 3)
    close(harness.step({1: 17})[0], expected(model, fork)[-17:])


def check_greedy(model: Any, opened: Open) -> None:
    wanted = TOKENS[:20]
    for _ in range(16):
        wanted = [*wanted, int(expected(model, wanted)[-1].argmax())]
    logits = opened([wanted]).step({0: len(wanted)})[0]
    assert logits[19:-1].argmax(dim=1).tolist() == wanted[20:]


def check_recorded(model: Any, opened: Open, close: Close = close) -> None:
    """Decode steps of two sequences as replays."""
    others = [TOKENS, TOKENS[20:60]]
    harness = opened(others)
    harness.step({0: 67, 1: 37})
    for i in range(3):
        logits = harness.recorded([0, 1])
        assert logits is not None
        for tokens, computed, row in zip(others, (68 + i, 38 + i), logits, strict=True):
            close(row, expected(model, tokens[:computed])[-1:])


WAYS = (check_chunks, check_batch, check_shared_prefix, check_greedy)
