"""Sampling against the analytic distribution left by the filters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quire.ops.backend import Ops, SampleStep
from quire.ops.reference import ReferenceOps

DEFAULTS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 7}
INTEGERS = {"top_k": torch.int32, "seed": torch.int64, "position": torch.int64}


def step(rows: int, **given: float | torch.Tensor) -> SampleStep:
    """Parameters of ``rows`` rows from numbers or tensors; positions count up unless given."""
    columns = {"position": torch.arange(rows), **DEFAULTS, **given}
    return SampleStep(
        **{
            name: torch.as_tensor(v).to(INTEGERS.get(name, torch.float32)).repeat(rows)[:rows]
            for name, v in columns.items()
        }
    )


def distribution(logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """Temperature, min_p, top_k, top_p, by sorting, in float64 (no ties in these tests)."""
    scaled = logits.astype(np.float64) / temperature
    p = np.exp(scaled - scaled.max())
    p[p < min_p] = 0
    order = np.argsort(-p, kind="stable")
    if top_k > 0:
        p[order[top_k:]] = 0
    p /= p.sum()
    cumulated = np.cumsum(p[order])
    keep = int(np.searchsorted(cumulated, top_p - 1e-9)) + 1
    if top_p < 1:
        p[order[keep:]] = 0
    return p / p.sum()


CASES = [
    (1.0, 0, 1.0, 0.0),
    (0.7, 0, 1.0, 0.0),
    (1.5, 5, 1.0, 0.0),
    (1.0, 0, 0.6, 0.0),
    (1.0, 0, 1.0, 0.2),
    (1.2, 12, 0.8, 0.05),
    (1.0, 1, 1.0, 0.0),
    (1.0, 1000, 0.999, 0.0),
]


@pytest.mark.parametrize(("temperature", "top_k", "top_p", "min_p"), CASES)
def test_distribution(ops: Ops, temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    """Chi-square over many positions: above the bound once in about 10^5 fair draws (and the draws are fixed)."""
    rows, vocab = 20000, 33
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(3)) * 1.5
    want = distribution(logits.numpy(), temperature, top_k, top_p, min_p)
    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    ids = ops.sample(logits.expand(rows, vocab).contiguous(), step(rows, **given)).numpy()
    counts = np.bincount(ids, minlength=vocab)
    assert counts[want == 0].sum() == 0
    likely = want * rows >= 5
    chi = (((counts - want * rows) ** 2)[likely] / (want * rows)[likely]).sum()
    freedom = max(1, int(likely.sum()) - 1)
    assert chi < freedom + 4.3 * np.sqrt(2 * freedom) + 10


def test_positions_and_seeds_are_independent(ops: Ops) -> None:
    """Uniform logits over 16 tokens: neighbours in position and in seed show no correlation."""
    rows = 20000
    logits = torch.zeros(rows, 16)
    by_position = ops.sample(logits, step(rows)).numpy()
    by_seed = ops.sample(logits, step(rows, seed=torch.arange(rows), position=torch.full((rows,), 5))).numpy()
    for ids in (by_position, by_seed):
        pairs = np.bincount(ids[:-1] * 16 + ids[1:], minlength=256)
        chi = ((pairs - (rows - 1) / 256) ** 2 / ((rows - 1) / 256)).sum()
        assert chi < 255 + 4.3 * np.sqrt(2 * 255)
    assert (by_position == by_seed).mean() < 0.1


def test_a_row_does_not_depend_on_its_batch(ops: Ops) -> None:
    torch.manual_seed(0)
    rows, vocab = 40, 5000
    logits = torch.randn(rows, vocab) * 2
    given = {
        "temperature": torch.rand(rows) * 2,
        "top_k": torch.randint(-1, 100, (rows,)),
        "top_p": torch.rand(rows) * 0.9 + 0.1,
        "seed": torch.randint(-(2**62), 2**62, (rows,)),
        "position": torch.randint(0, 10**6, (rows,)),
    }
    whole = ops.sample(logits, step(rows, **given))
    for row in range(rows):
        alone = ops.sample(logits[row : row + 1], step(1, **{k: v[row : row + 1] for k, v in given.items()}))
        assert alone[0] == whole[row]


def test_same_tokens_as_the_reference(ops: Ops) -> None:
    torch.manual_seed(0)
    rows, vocab = 300, 20011
    logits = torch.randn(rows, vocab) * 3
    given = {
        "temperature": torch.rand(rows) * 2,
        "top_k": torch.where(torch.rand(rows) < 0.5, 0, torch.randint(1, 2000, (rows,))),
        "top_p": torch.where(torch.rand(rows) < 0.5, 1.0, torch.rand(rows)),
        "min_p": torch.where(torch.rand(rows) < 0.5, 0.0, torch.rand(rows) * 0.2),
        "seed": torch.randint(-(2**62), 2**62, (rows,)),
    }
    assert torch.equal(ops.sample(logits, step(rows, **given)), ReferenceOps().sample(logits, step(rows, **given)))


def test_greedy_takes_the_lowest_of_equals(ops: Ops) -> None:
    for vocab in (3, 8, 100, 4099):
        logits = torch.zeros(4, vocab)
        logits[1, vocab - 1] = 1
        logits[2, vocab // 2 :] = 2
        logits[3] = float("-inf")
        logits[3, vocab - 2] = -5
        want = [0, vocab - 1, vocab // 2, vocab - 2]
        assert ops.sample(logits, step(4, temperature=0.0)).tolist() == want


def test_greedy_and_sampled_rows_mix(ops: Ops) -> None:
    torch.manual_seed(0)
    logits = torch.randn(50, 1000)
    temperature = torch.where(torch.arange(50) % 2 == 0, 0.0, 1.0)
    ids = ops.sample(logits, step(50, temperature=temperature))
    assert torch.equal(ids[::2], logits[::2].argmax(-1))
    assert not torch.equal(ids[1::2], logits[1::2].argmax(-1))


def test_masked_tokens_are_never_drawn(ops: Ops) -> None:
    logits = torch.full((200, 1000), float("-inf"))
    logits[:, [3, 700]] = 0.0
    for given in ({}, {"top_p": 0.9}, {"top_k": 50}, {"top_k": 2, "top_p": 0.99}):
        assert set(ops.sample(logits, step(200, **given)).tolist()) == {3, 700}


def test_equal_tokens_at_a_filter_stay_together(ops: Ops) -> None:
    logits = torch.zeros(500, 10)
    logits[:, 4] = 3.0
    assert len(set(ops.sample(logits, step(500, top_k=2, temperature=2.0)).tolist())) == 10


def test_a_row_without_a_distribution_gives_minus_one(ops: Ops) -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 777)
    clean = ops.sample(logits, step(6))
    logits[1, 776] = float("nan")
    logits[3, 5] = float("inf")
    logits[4] = float("-inf")
    for temperature in (0.0, 1.0):
        ids = ops.sample(logits, step(6, temperature=temperature))
        assert ids[[1, 3, 4]].tolist() == [-1, -1, -1]
        assert (ids[[0, 2, 5]] >= 0).all()
    assert torch.equal(ids[[0, 2, 5]], clean[[0, 2, 5]])


def test_no_rows(ops: Ops) -> None:
    assert ops.sample(torch.zeros(0, 10), step(0)).shape == (0,)
