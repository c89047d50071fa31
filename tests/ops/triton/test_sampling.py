"""Sampling against the reference (the same tokens) and against its rules."""

from __future__ import annotations

import pytest
import torch

from quire.ops.backend import SampleStep
from quire.ops.triton import TritonOps
from tests.ops.test_sample import CASES, step
from tests.ops.triton.harness import REFERENCE


def there(ops: TritonOps, given: SampleStep) -> SampleStep:
    return SampleStep(**{name: value.to(ops.device) for name, value in vars(given).items()})


def drawn(ops: TritonOps, logits: torch.Tensor, given: SampleStep) -> torch.Tensor:
    return ops.sample(logits.to(ops.device), there(ops, given)).cpu()


@pytest.mark.parametrize(("temperature", "top_k", "top_p", "min_p"), CASES)
@pytest.mark.parametrize("vocab", [50, 9001])
def test_same_tokens_as_the_reference(
    float_ops: TritonOps, vocab: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    rows = 6
    given = step(
        rows,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=torch.randint(-(2**62), 2**62, (rows,)),
        position=torch.randint(0, 10**6, (rows,)),
    )
    logits = torch.randn(rows, vocab) * 3
    assert torch.equal(drawn(float_ops, logits, given), REFERENCE.sample(logits, given))


def test_rows_mix(float_ops: TritonOps) -> None:
    given = step(
        4,
        temperature=torch.tensor([0.0, 0.8, 1.2, 1.0]),
        top_k=torch.tensor([5, -1, 3, 0]),
        top_p=torch.tensor([1.0, 0.5, 1.0, 1.0]),
        min_p=torch.tensor([0.0, 0.0, 0.1, 0.0]),
    )
    logits = torch.randn(4, 5000) * 2
    assert torch.equal(drawn(float_ops, logits, given), REFERENCE.sample(logits, given))


def test_narrow_logits_and_views(float_ops: TritonOps) -> None:
    wide = torch.randn(3, 6000).bfloat16()
    given = step(3, top_k=40, top_p=0.9)
    assert torch.equal(drawn(float_ops, wide, given), REFERENCE.sample(wide, given))
    assert torch.equal(drawn(float_ops, wide[:, :5000], given), REFERENCE.sample(wide[:, :5000], given))


def test_greedy_takes_the_lowest_of_equals(float_ops: TritonOps) -> None:
    vocab = 4099
    logits = torch.zeros(4, vocab)
    logits[1, vocab - 1] = 1
    logits[2, vocab // 2 :] = 2
    logits[3] = float("-inf")
    logits[3, vocab - 2] = -5
    got = drawn(float_ops, logits, step(4, temperature=0.0))
    assert got.tolist() == [0, vocab - 1, vocab // 2, vocab - 2]


def test_masked_tokens_are_never_drawn(float_ops: TritonOps) -> None:
    logits = torch.full((8, 5000), float("-inf"))
    logits[:, [3, 4700]] = 0.0
    for given in ({}, {"top_p": 0.9}, {"top_k": 50}, {"top_k": 2, "top_p": 0.99}):
        assert set(drawn(float_ops, logits, step(8, **given)).tolist()) <= {3, 4700}


def test_equal_tokens_at_a_filter_stay_together(float_ops: TritonOps) -> None:
    logits = torch.zeros(40, 10)
    logits[:, 4] = 3.0
    given = step(40, top_k=2, temperature=2.0)
    got = drawn(float_ops, logits, given)
    assert torch.equal(got, REFERENCE.sample(logits, given))
    assert len(set(got.tolist())) > 4


def test_a_row_without_a_distribution_gives_minus_one(float_ops: TritonOps) -> None:
    logits = torch.randn(6, 4500)
    clean = drawn(float_ops, logits, step(6))
    logits[1, 4499] = float("nan")
    logits[3, 5] = float("inf")
    logits[4] = float("-inf")
    for temperature in (0.0, 1.0):
        ids = drawn(float_ops, logits, step(6, temperature=temperature))
        assert ids[[1, 3, 4]].tolist() == [-1, -1, -1]
        assert (ids[[0, 2, 5]] >= 0).all()
    assert torch.equal(ids[[0, 2, 5]], clean[[0, 2, 5]])


def test_no_rows(float_ops: TritonOps) -> None:
    assert drawn(float_ops, torch.zeros(0, 10), step(0)).shape == (0,)
