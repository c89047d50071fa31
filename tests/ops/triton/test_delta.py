"""The gated delta rule over pages of states: steps of every kind leave what the reference leaves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from quire.ops.backend import DeltaWeights
from quire.ops.shapes import DeltaShape
from quire.ops.states import StatePages
from quire.ops.triton import TritonOps

from .harness import REFERENCE, draw, given, make_step, moved

SHAPES = {
    "grouped": DeltaShape(key_heads=2, value_heads=4, key_dim=16, value_dim=8, kernel=4),
    "odd": DeltaShape(key_heads=1, value_heads=3, key_dim=20, value_dim=12, kernel=3),
}
PAGE = 8
# Tokens of each of three sequences in the steps: chunks that end in, at and beyond pages' ends; then single ones.
STEPS = [(5, 19, 1), (3, 0, 7), (1, 1, 1), (8, 1, 2), (1, 1, 1), (1, 1, 1)]


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got.cpu(), want, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_gated_delta(ops: TritonOps, shape: DeltaShape) -> None:
    weights = DeltaWeights(
        torch.randn(shape.channels, shape.kernel), -torch.rand(shape.value_heads), torch.randn(shape.value_heads)
    )
    there = DeltaWeights(*(x.to(ops.device) for x in (weights.kernel, weights.decay, weights.decay_bias)))
    layout, total = make_step([(sum(counts), 1) for counts in zip(*STEPS, strict=True)], PAGE)
    want_pages, got_pages = (StatePages.new(shape, total, PAGE, device) for device in (torch.device("cpu"), ops.device))
    done = [0, 0, 0]
    for counts in STEPS:
        done = [before + count for before, count in zip(done, counts, strict=True)]
        rows = [s for s, count in enumerate(counts) if count]
        step = replace(
            layout,
            positions=torch.cat([torch.arange(done[s] - counts[s], done[s]) for s in rows]).int(),
            slots=torch.zeros(sum(counts), dtype=torch.int64),
            query_start=torch.tensor([0, *(counts[s] for s in rows)]).cumsum(0).int(),
            context_len=torch.tensor([done[s] for s in rows], dtype=torch.int32),
            block_table=layout.block_table[rows],
            max_query=max(counts),
        )  # fmt: skip
        heads, width = shape.value_heads, shape.channels + 2 * shape.value_heads
        x = draw(ops, sum(counts), width)
        parts, own = (y.split([shape.channels, heads, heads], dim=1) for y in (x, given(ops, x)))
        want = REFERENCE.gated_delta(*parts, weights, shape, want_pages, step)
        close(ops.gated_delta(*own, there, shape, got_pages, moved(step, ops.device)), want)
        assert got_pages.position.tolist() == want_pages.position.tolist()
    known = want_pages.position >= 0
    close(got_pages.k[known.to(ops.device)], want_pages.k[known])
    close(got_pages.v[known.to(ops.device)], want_pages.v[known])


def test_states_that_are_not_there(float_ops: TritonOps) -> None:
    """A row whose state is lost says so, and so its request alone fails; padding touches nothing."""
    shape = SHAPES["grouped"]
    weights = DeltaWeights(torch.ones(shape.channels, 4), -torch.ones(4), torch.zeros(4))
    weights = DeltaWeights(*(x.to(float_ops.device) for x in (weights.kernel, weights.decay, weights.decay_bias)))
    step, total = make_step([(1, 1), (6, 1), (1, 1)], PAGE)
    pages = StatePages.new(shape, total, PAGE, float_ops.device)
    step = moved(replace(step, context_len=torch.tensor([1, 6, 0], dtype=torch.int32)), float_ops.device)
    parts = torch.randn(3, shape.channels + 8, device=float_ops.device).split([shape.channels, 4, 4], dim=1)
    out = float_ops.gated_delta(*parts, weights, shape, pages, step)
    assert out[0].isfinite().all()
    assert out[1].isnan().all()
    assert (pages.position >= 0).sum() == 2
