"""Norms, activations, embedding and products against the reference."""

from __future__ import annotations

import pytest
import torch

from quire.ops.layouts import Dense
from quire.ops.triton import TritonOps
from quire.ops.triton.linear import skinny_linear
from tests.ops.triton.harness import REFERENCE, close, draw, given


@pytest.mark.parametrize("width", [20, 576, 1025])
@pytest.mark.parametrize("residual", [False, True])
def test_rms_norm(ops: TritonOps, width: int, residual: bool) -> None:
    x, weight = draw(ops, 3, width), torch.randn(width)
    before = draw(ops, 3, width) if residual else None
    want, want_sum = REFERENCE.rms_norm(x, weight, 1e-5, before)
    got, got_sum = ops.rms_norm(given(ops, x), weight.to(ops.device), 1e-5, given(ops, before))
    assert got.dtype is ops.dtype
    close(got, want)
    close(got_sum, want_sum)


@pytest.mark.parametrize("bias", [False, True])
def test_layer_norm(ops: TritonOps, bias: bool) -> None:
    x, before = draw(ops, 3, 100) + 2, draw(ops, 3, 100)
    weight, offset = torch.randn(100), torch.randn(100) if bias else None
    want, want_sum = REFERENCE.layer_norm(x, weight, offset, 1e-5, before)
    device_offset = None if offset is None else offset.to(ops.device)
    got, got_sum = ops.layer_norm(given(ops, x), weight.to(ops.device), device_offset, 1e-5, given(ops, before))
    close(got, want, scale=2)
    close(got_sum, want_sum)


@pytest.mark.parametrize("centered", [False, True])
def test_norm_columns(ops: TritonOps, centered: bool) -> None:
    want = draw(ops, 4, 90)
    got = given(ops, want).clone()
    weight, bias = torch.randn(3, 20), torch.randn(3, 20) if centered else None
    REFERENCE.norm_columns(want, 10, weight, bias, 1e-5, centered)
    ops.norm_columns(got, 10, weight.to(ops.device), None if bias is None else bias.to(ops.device), 1e-5, centered)
    close(got, want, scale=2)


def test_sums(ops: TritonOps) -> None:
    x, y, table = draw(ops, 3, 20), draw(ops, 3, 20), torch.randn(9, 20)
    positions = torch.tensor([8, 0, 3], dtype=torch.int32)
    close(ops.add(given(ops, x), given(ops, y)), x + y)
    got = ops.add_positions(given(ops, x), table.to(ops.device), positions.to(ops.device))
    assert got.dtype is ops.dtype
    close(got, REFERENCE.add_positions(x, table, positions))


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu", "relu2", "swiglu_oss"])
def test_activations(ops: TritonOps, activation: str) -> None:
    for width in (20, 1100):
        x = draw(ops, 2, 2 * width) * 4
        close(ops.gate_up_act(given(ops, x), activation), REFERENCE.gate_up_act(x, activation))
        if activation != "swiglu_oss":
            close(ops.activate(given(ops, x), activation), REFERENCE.activate(x, activation))


def test_activations_at_the_ends(float_ops: TritonOps) -> None:
    nan, inf = float("nan"), float("inf")
    x = torch.tensor([nan, inf, -1000.0, 1000.0, 0.0, -90.0, 90.0, 3.0])
    both = torch.cat((x, torch.ones(8)))[None].to(float_ops.device)
    for activation in ("silu", "gelu_tanh", "relu"):
        got = float_ops.gate_up_act(both, activation)[0]
        assert got[0].isnan()
        assert got[[1, 3, 4, 6]].tolist() == [inf, 1000.0, 0.0, 90.0]
        assert got[[2, 5]].abs().max() < 1e-30


def test_embed(ops: TritonOps) -> None:
    table = draw(ops, 50, 96)
    ids = torch.tensor([3, 0, 49, 3])
    weight = ops.pack(Dense(table))
    assert (weight.shape, weight.nbytes) == ((50, 96), 50 * 96 * ops.dtype.itemsize)
    for multiplier in (1.0, 2.5):
        close(ops.embed(weight, ids.to(ops.device), multiplier), table[ids] * multiplier)


@pytest.mark.parametrize(("rows", "n", "k"), [(1, 40, 200), (1, 9, 4096), (2, 48, 2304), (4, 100, 72), (9, 33, 520)])
@pytest.mark.parametrize("bias", [False, True])
def test_skinny_linear(ops: TritonOps, rows: int, n: int, k: int, bias: bool) -> None:
    x, weight, offset = draw(ops, rows, k), draw(ops, n, k) * k**-0.5, draw(ops, n) if bias else None
    counters = torch.zeros(64, dtype=torch.int32, device=ops.device)
    got = skinny_linear(given(ops, x), given(ops, weight), given(ops, offset), counters)
    close(got, torch.nn.functional.linear(x, weight, offset))
    assert not counters.any()


@pytest.mark.parametrize("rows", [0, 1, 3, 40])
def test_linear(ops: TritonOps, rows: int) -> None:
    x, weight = draw(ops, rows, 64), draw(ops, 24, 64) / 8
    packed = ops.pack(Dense(weight))
    close(ops.linear(given(ops, x), packed), x @ weight.T)
