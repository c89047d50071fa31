"""Experts against the reference."""

from __future__ import annotations

import pytest
import torch

from quire.ops.backend import Routes
from quire.ops.layouts import Dense
from quire.ops.shapes import Routing
from quire.ops.triton import TritonOps
from tests.ops.triton.harness import REFERENCE, close, draw, given


@pytest.mark.parametrize(("tokens", "experts", "top_k"), [(1, 4, 2), (7, 3, 1), (60, 3, 2)])
@pytest.mark.parametrize("bias", [False, True])
def test_experts(ops: TritonOps, tokens: int, experts: int, top_k: int, bias: bool) -> None:
    n, k = 40, 72
    matrices = [Dense(draw(ops, n, k) / 8) for _ in range(experts)]
    x, logits = draw(ops, tokens, k), torch.randn(tokens, experts)
    offset = draw(ops, experts, n) if bias else None
    routing = Routing(top_k, renormalize=True)
    want = REFERENCE.route(logits, routing)
    routes = ops.route(logits.to(ops.device), routing)
    assert torch.equal(routes.rows.cpu(), want.rows)
    assert torch.equal(routes.offsets.cpu(), want.offsets)
    stack, reference_stack = ops.pack_stack(matrices), REFERENCE.pack_stack(matrices)
    y = ops.grouped_linear(given(ops, x), stack, routes.offsets, given(ops, offset), routes.rows)
    want_y = REFERENCE.grouped_linear(x, reference_stack, want.offsets, offset, want.rows)
    close(y, want_y)
    assert torch.equal(ops.grouped_linear(given(ops, x[want.rows]), stack, routes.offsets, given(ops, offset)), y)
    for more in ((), (draw(ops, tokens, n),), (draw(ops, tokens, n), draw(ops, tokens, 1))):
        got = ops.combine(y, routes, *(given(ops, t) for t in more))
        close(got, REFERENCE.combine(y.float().cpu(), want, *more))


def test_experts_without_rows(ops: TritonOps) -> None:
    offsets = torch.tensor([0, 0, 3, 3, 3], dtype=torch.int32)
    matrices = [Dense(draw(ops, 20, 32)) for _ in range(4)]
    x = draw(ops, 3, 32)
    got = ops.grouped_linear(given(ops, x), ops.pack_stack(matrices), offsets.to(ops.device))
    close(got, x @ matrices[1].weight.T, scale=3)
    none = Routes(offsets[:0], offsets, torch.zeros(0, 2, dtype=torch.int32), torch.zeros(0, 2))
    assert ops.combine(got[:0], none).shape == (0, 20)
