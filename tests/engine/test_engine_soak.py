"""500 requests on real decoders and a pool far too small: each gets what it gets alone, and every page comes back.

Of the hybrid fewer: its states are computed with torch, ten times as slowly.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import Outcome, check, check_empty, collect, run

from quire.config.engine import EngineConfig
from quire.engine.core import EngineCore
from quire.engine.messages import EngineRequest
from quire.params import SamplingParams
from quire.runtime.build import build_runner, make_blueprint
from tests.model.agreement import VOCAB, random_model
from tests.model.rms_cases import CASES, COMMON
from tests.model.test_moe_families import CASES as HYBRIDS

CONTEXT = 160
TIE = 1e-3
MODELS = {
    "llama": (500, CASES["llama"]),
    "gemma3": (500, CASES["gemma3"]),  # a page group for its windows
    "qwen3_5": (150, {**COMMON, **HYBRIDS["qwen3_5"]}),  # and one for states
}


def options(model: Path, **more: Any) -> EngineConfig:
    settings = {"max_model_len": CONTEXT, "page_size": 16, "max_num_batched_tokens": 64, "threads": 1}
    return EngineConfig(model=str(model), **settings, **more)


def small(model: Path) -> EngineConfig:
    """Twelve slots, and memory for little more than the pages of one long request."""
    config = options(model, max_num_seqs=12)
    plan = make_blueprint(config).memory
    one = plan.kv / plan.concurrency
    fixed = plan.weights + plan.workspace + plan.process
    return replace(config, memory=str(int(fixed + 1.1 * one)))


def make_request(rng: random.Random, number: int, prefixes: list[list[int]]) -> EngineRequest:
    tail = [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 20))]
    prompt = rng.choice(prefixes) + tail
    most = rng.randrange(1, 64)
    params: dict[str, Any] = {"max_tokens": most, "min_tokens": rng.randrange(2) * rng.randrange(most)}
    if rng.random() < 0.5:
        params |= {"temperature": rng.uniform(0.5, 1.5), "top_k": rng.choice([0, 20]), "top_p": rng.choice([0.9, 1.0])}
        params |= {"presence_penalty": rng.choice([0.0, 1.0]), "repetition_penalty": rng.choice([1.0, 1.2])}
    else:
        params |= {"temperature": 0.0}
    if rng.random() < 0.2:
        params |= {"logprobs": 2, "prompt_logprobs": rng.choice([None, 1])}
    ends = [rng.randrange(VOCAB) for _ in range(6)]
    return EngineRequest(str(number), prompt, SamplingParams(**params), seed=number, eos_token_ids=ends)


@pytest.fixture(params=MODELS, scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Any, Path]:
    """How many requests, and the model in Transformers and on disk."""
    count, settings = MODELS[request.param]
    path = tmp_path_factory.mktemp(request.param)
    return count, random_model(settings, path), path


@pytest.mark.slow
def test_soak(case: tuple[int, Any, Path]) -> None:
    count, oracle, path = case
    rng = random.Random(11)
    config = small(path)
    core = EngineCore(build_runner(config), config, bounded=False)
    prefixes = [[rng.randrange(VOCAB) for _ in range(rng.randrange(0, 56))] for _ in range(6)]
    requests: dict[str, EngineRequest] = {}
    aborted: set[str] = set()
    outcomes: dict[str, Outcome] = {}
    steps = 0
    while len(requests) < count or core.has_work:
        for _ in range(rng.randrange(4) if len(requests) < count else 0):
            message = make_request(rng, len(requests), prefixes)
            requests[message.request_id] = message
            core.add(message)
        collect(core.step(), outcomes)
        check(core)
        steps += 1
        assert steps < 100 * count, "the engine makes no progress"
        if rng.random() < 0.03 and core._requests:
            name = rng.choice(list(core._requests))
            core.abort([name])
            aborted.add(name)
    check_empty(core)
    stats = core.stats()
    assert len(outcomes) == len(requests) >= count
    assert len(aborted) > count // 50
    assert stats.preemptions > count // 100
    assert stats.cached_tokens > count

    roomy = options(path, max_num_seqs=1, enable_prefix_caching=False)
    alone = EngineCore(build_runner(roomy), roomy, bounded=False)
    for name, message in requests.items():
        alone.add(message)
        wanted, found = run(alone)[name], outcomes[name]
        if name in aborted:
            assert found.reason == "abort"
            assert found.tokens == wanted.tokens[: len(found.tokens)]
        else:
            assert (found.tokens, found.reason) == (wanted.tokens, wanted.reason), name
        if message.params.temperature == 0 and int(name) % 8 == 0:
            check_greedy(oracle, message, found.tokens)
    check_empty(alone)


def check_greedy(oracle: Any, message: EngineRequest, tokens: list[int]) -> None:
    """Transformers would have chosen these tokens, up to ties."""
    if not tokens:
        return
    prompt = message.prompt_token_ids
    with torch.no_grad():
        logits = oracle(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].float()
    for position, row in enumerate(logits):
        if position < message.params.min_tokens:
            row[message.eos_token_ids] = -torch.inf
        assert row[tokens[position]] >= row.max() - TIE
