"""The product of a gated layer and its activation, whichever kernels serve it."""

from __future__ import annotations

import pytest
import torch

from quire.ops.layouts import Dense, GroupedInt
from quire.ops.triton import TritonOps, cute, gated
from tests.ops.triton.harness import REFERENCE, close, draw, given


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "relu", "gelu"])
@pytest.mark.parametrize(("rows", "bias"), [(1, False), (3, True), (9, True), (20, True), (gated.MIN_ROWS + 77, False)])
def test_gated_linear(ops: TritonOps, activation: str, rows: int, bias: bool) -> None:
    if ops.device.type == "cpu":
        rows = min(rows, 21)  # the interpreter has no other kernels for more
    x, weight, offset = draw(ops, rows, 64) * 2, draw(ops, 2 * 104, 64) / 8, draw(ops, 208) if bias else None
    got = ops.gated_linear(given(ops, x), ops.pack(Dense(weight)), given(ops, offset), activation)
    want = REFERENCE.gated_linear(x, REFERENCE.pack(Dense(weight)), offset, activation)
    assert got.dtype is ops.dtype
    close(got, want, scale=2)
    if cute.hopper(ops.device) and ops.dtype is not torch.float32:
        assert gated.takes(given(ops, x), 208, activation) == (rows >= gated.MIN_ROWS and activation != "gelu")


@pytest.mark.parametrize("order", [False, True])
def test_narrow_weights(ops: TritonOps, order: bool) -> None:
    """From so many rows on they are expanded first."""
    rows, inputs = gated.MIN_ROWS if ops.device.type == "cuda" else 4, 256
    q = torch.randint(0, 16, (128, inputs), dtype=torch.uint8)
    scale = draw(ops, 128, 2).abs() / 64
    layout = GroupedInt(q, scale, None, 4, 128, 8, torch.randperm(inputs) if order else None)
    x = draw(ops, rows, inputs)
    got = ops.gated_linear(given(ops, x), ops.pack(layout), None, "silu")
    close(got, REFERENCE.gated_linear(x, REFERENCE.pack(layout), None, "silu"), scale=3)
