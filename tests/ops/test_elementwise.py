"""Norms and activations against float64 formulas."""

from __future__ import annotations

import math

import pytest
import torch

from quire.ops.backend import Ops


@pytest.mark.parametrize("width", [8, 20, 576, 1025])
@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("residual", [False, True])
def test_rms_norm(ops: Ops, rows: int, width: int, residual: bool) -> None:
    torch.manual_seed(width)
    x, weight = torch.randn(rows, width), torch.randn(width)
    before = torch.randn(rows, width) if residual else None
    total = x.double() if before is None else x.double() + before.double()
    want = total / (total.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    got, new_residual = ops.rms_norm(x, weight, 1e-5, before)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(new_residual.double(), total, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("width", [8, 20, 576, 1025])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_layer_norm(ops: Ops, width: int, bias: bool, residual: bool) -> None:
    torch.manual_seed(width)
    x, weight = torch.randn(37, width) + 3, torch.randn(width)
    shift = torch.randn(width) if bias else None
    before = torch.randn(37, width) if residual else None
    total = x.double() if before is None else x.double() + before.double()
    centered = total - total.mean(-1, keepdim=True)
    want = centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    want = want if shift is None else want + shift.double()
    got, new_residual = ops.layer_norm(x, weight, shift, 1e-5, before)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=3e-6)
    torch.testing.assert_close(new_residual.double(), total, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("parts", "width"), [(1, 80), (5, 16), (3, 20)])
@pytest.mark.parametrize(("centered", "bias"), [(False, False), (True, False), (True, True)])
def test_norm_columns(ops: Ops, parts: int, width: int, centered: bool, bias: bool) -> None:
    torch.manual_seed(parts)
    x, weight = torch.randn(9, 120), torch.randn(parts, width)
    shift = torch.randn(parts, width) if bias else None
    columns = x[:, 24 : 24 + parts * width].double().view(9, parts, width)
    columns = columns - columns.mean(-1, keepdim=True) if centered else columns
    want = columns / (columns.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    want = want if shift is None else want + shift.double()
    got = x.clone()
    ops.norm_columns(got, 24, weight, shift, 1e-6, centered)
    torch.testing.assert_close(got[:, 24 : 24 + parts * width].double(), want.flatten(1), rtol=1e-5, atol=3e-6)
    assert torch.equal(got[:, :24], x[:, :24])
    assert torch.equal(got[:, 24 + parts * width :], x[:, 24 + parts * width :])


@pytest.mark.parametrize("width", [8, 20, 577])
def test_sums(ops: Ops, width: int) -> None:
    x, y, table = torch.randn(50, width), torch.randn(50, width), torch.randn(12, width)
    positions = torch.randint(0, 12, (50,), dtype=torch.int32)
    assert torch.equal(ops.add(x, y), x + y)
    assert torch.equal(ops.add_positions(x, table, positions), x + table[positions])


def test_positions_out_of_range(ops: Ops) -> None:
    with pytest.raises((ValueError, IndexError), match="out of"):
        ops.add_positions(torch.zeros(2, 8), torch.zeros(4, 8), torch.tensor([0, 4], dtype=torch.int32))


FORMULAS = {
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "gelu": lambda x: 0.5 * x * torch.special.erfc(-x / math.sqrt(2)),
    "gelu_tanh": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: x.clamp(min=0),
    "relu2": lambda x: x.clamp(min=0) ** 2,
}


@pytest.mark.parametrize("activation", list(FORMULAS))
@pytest.mark.parametrize("width", [4, 8, 100, 1536])
def test_gate_up(ops: Ops, activation: str, width: int) -> None:
    torch.manual_seed(width)
    for rows in (1, 40):
        gate = torch.randn(rows, width) * 4
        up = torch.randn(rows, width)
        want = FORMULAS[activation](gate.double()) * up.double()
        got = ops.gate_up_act(torch.cat((gate, up), dim=1), activation)
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("activation", list(FORMULAS))
@pytest.mark.parametrize("width", [4, 8, 100, 1536])
def test_activate(ops: Ops, activation: str, width: int) -> None:
    x = torch.randn(7, width) * 4
    want = FORMULAS[activation](x.double())
    torch.testing.assert_close(ops.activate(x, activation).double(), want, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(("rows", "width"), [(1, 3), (3, 4097), (2, 10_000)])
def test_softcap(ops: Ops, rows: int, width: int) -> None:
    x = torch.randn(rows, width) * 40
    want = 30 * torch.tanh(x.double() / 30)
    torch.testing.assert_close(ops.softcap(x, 30.0).double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("activation", "low"), [("silu", -80.0), ("gelu", -2.0), ("gelu_tanh", -2.0)])
def test_activations_are_accurate(ops: Ops, activation: str, low: float) -> None:
    """Relative error over the range where the result is not vanishing."""
    x = torch.linspace(low, 60, 20001)
    x = torch.cat((x, torch.linspace(-1, 1, 9999), torch.tensor([1e-6, -1e-6, 1e-20, 0.0])))
    want = FORMULAS[activation](x.double())
    got = ops.gate_up_act(torch.stack((x, torch.ones_like(x)), dim=0).reshape(1, -1), activation)[0].double()
    limit = 2e-6 if activation == "silu" else 2e-5  # 1 + tanh and 1 + erf cancel below 0, in torch too
    assert ((got - want).abs() / want.abs().clamp(min=1e-30)).max() < limit


def test_activations_at_the_ends(ops: Ops) -> None:
    nan, inf = float("nan"), float("inf")
    x = torch.tensor([nan, inf, -1000.0, 1000.0, 0.0, -90.0, 90.0, 3.0])
    for activation in ("silu", "gelu", "gelu_tanh", "relu"):
        got = ops.gate_up_act(torch.cat((x, torch.ones(8)))[None], activation)[0]
        assert got[0].isnan()
        assert not got[1].isfinite()  # torch's own gelu gives inf or nan, depending on the processor
        assert got[[3, 4, 6]].tolist() == [1000.0, 0.0, 90.0]
        assert got[[2, 5]].abs().max() < 1e-30


def test_norm_of_a_broken_row(ops: Ops) -> None:
    x = torch.randn(5, 64)
    x[2, 3] = float("nan")
    got, _ = ops.rms_norm(x, torch.ones(64), 1e-6)
    assert got[2].isnan().all()
    assert got[[0, 1, 3, 4]].isfinite().all()
