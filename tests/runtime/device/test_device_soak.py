"""500 requests of random lengths, aborts and shared prefixes on a GPU whose pages are far too few."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from quire.engine.messages import EngineRequest, TokenDelta
from tests.runtime.device.test_device_runner import DEVICE, ask, device_engine, models, run  # noqa: F401

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(DEVICE == "cpu", reason="hours in the interpreter")]
TIE = 1e-4  # of logits, between steps of different shapes
OPTIONS = {"max_num_seqs": 16, "max_num_batched_tokens": 48, "max_model_len": 144}


@pytest.mark.parametrize("name", ["full", "windows", "latent", "states"])
def test_soak(models: dict[str, Path], name: str) -> None:  # noqa: F811
    rng = random.Random(7)
    prefixes = [[rng.randrange(160) for _ in range(rng.randrange(0, 60))] for _ in range(6)]
    engine = device_engine(models[name], pages=14, **OPTIONS)
    requests: dict[str, EngineRequest] = {}
    found: dict[str, list[TokenDelta]] = {}
    live: set[str] = set()
    while len(requests) < 500 or engine.has_work:
        for _ in range(rng.randrange(4) if len(requests) < 500 else 0):
            request = _request(rng, str(len(requests)), rng.choice(prefixes))
            requests[request.request_id] = request
            live.add(request.request_id)
            engine.add(request)
        for delta in engine.step():
            found.setdefault(delta.request_id, []).append(delta)
            if delta.finish_reason:
                live.discard(delta.request_id)
        if rng.random() < 0.06 and live:
            engine.abort([rng.choice(sorted(live))])
    reasons = [deltas[-1].finish_reason for deltas in found.values()]
    assert len(reasons) == len(requests) >= 500
    assert set(reasons) == {"length", "abort"}
    assert engine.core.kv.free_pages == engine.core.kv.total_pages
    assert engine.stats().preemptions > 10
    alone = device_engine(models[name], **OPTIONS, enable_prefix_caching=False)
    for request_id in rng.sample(sorted(requests), 200):
        _check_same(found[request_id], run(alone, [requests[request_id]])[request_id])


def _request(rng: random.Random, name: str, prefix: list[int]) -> EngineRequest:
    tail = [rng.randrange(160) for _ in range(rng.randrange(1, 24))]
    settings = {"temperature": rng.choice([0.0, 1.0]), "seed": int(name), "logprobs": 2}
    return ask(name, prefix + tail, max_tokens=rng.randrange(1, 50), **settings)


def _check_same(deltas: list[TokenDelta], alone: list[TokenDelta]) -> None:
    """The same tokens up to where a run was cut off, or to a tie between two."""
    rows = [
        [(token, row) for delta in d for token, row in zip(delta.token_ids, delta.logprobs or [], strict=True)]
        for d in (deltas, alone)
    ]
    for (token, mine), (other, wanted) in zip(*rows, strict=False):
        assert torch.allclose(torch.tensor(mine.logprobs[1:]), torch.tensor(wanted.logprobs[1:]), atol=20 * TIE)
        if token != other:
            assert (
                abs(mine.logprobs[0] - wanted.logprobs[0]) < TIE or abs(wanted.logprobs[1] - wanted.logprobs[2]) < TIE
            )
            return
    if deltas[-1].finish_reason != "abort":
        assert len(rows[0]) == len(rows[1])
