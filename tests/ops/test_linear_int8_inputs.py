"""Products whose inputs are rounded to 8 bits by groups: exact for those, a row the same in any company."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from quire.ops.backend import Ops
from quire.ops.layouts import GroupedInt, Layout
from tests.ops.test_linear import grouped, int8, magnitude, matrix, super_blocks, super_codebook

CpuOps = pytest.importorskip("quire.ops.cpu.ops", reason="the CPU kernels are not built").CpuOps
INSTRUCTION_SETS = pytest.importorskip("quire.ops.cpu.ops").INSTRUCTION_SETS


@pytest.fixture(scope="module", params=[name for name in INSTRUCTION_SETS if name != "portable"])
def int8_ops(request: pytest.FixtureRequest) -> Ops:
    return CpuOps(2, request.param, int8_inputs=True)  # type: ignore[no-any-return]


def rounded(x: torch.Tensor, group: int, order: torch.Tensor | None) -> torch.Tensor:
    """``x [rows, K]`` in 127ths of the largest of each ``group`` of inputs, taken in ``order``."""
    order = torch.arange(x.shape[1]) if order is None else order.long()
    parts = x[:, order].view(len(x), -1, group)
    scale = parts.abs().amax(2, keepdim=True) / 127
    out = torch.empty_like(x)
    out[:, order] = ((parts / scale).round() * scale).view(len(x), -1)
    return out


def check(ops: Ops, layout: Layout, rows: int, bias: bool, bits: int, group: int) -> None:
    """Against float64 with the rounded inputs; some may fall to the other side of a half."""
    n, k = layout.shape
    x = torch.randn(rows, k)
    b = torch.randn(n) if bias else None
    gains = bits < 8 or ops.instruction_set.endswith("vnni")  # type: ignore[attr-defined]
    seen = rounded(x, group, layout.order if isinstance(layout, GroupedInt) else None) if gains else x
    want = seen.double() @ matrix(layout).T + (0 if b is None else b.double())
    size = seen.double().abs() @ magnitude(layout).T + 1e-6
    error = (ops.linear(x, ops.pack(layout), b).double() - want).abs() / size
    assert error.max() < 1e-3
    assert error.median() < 1e-6


@pytest.mark.parametrize("rows", [1, 3, 8, 16, 60])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_widths_zeros_and_orders(int8_ops: Ops, rows: int, bits: int) -> None:
    torch.manual_seed(bits)
    half = 0 if bits == 8 else 1 << (bits - 1)
    for group, zero, order in ((32, half, False), (192, "each", True), (256, 3, False)):
        check(int8_ops, grouped(43, 768, bits, group, False, torch.float16, zero, order), rows, order, bits, group)


@pytest.mark.parametrize(("bits", "group", "minimum"), [(4, 32, True), (5, 32, True), (6, 16, False)])
def test_super_blocks(int8_ops: Ops, bits: int, group: int, minimum: bool) -> None:
    check(int8_ops, super_blocks(43, 1536, bits, group, minimum), 9, True, bits, group)
    check(int8_ops, int8(43, 320), 9, True, 8, 160)


@pytest.mark.parametrize("rows", [1, 9, 40])
@pytest.mark.parametrize("scale_type", [torch.int8, torch.float16])
def test_tables_of_integers(int8_ops: Ops, rows: int, scale_type: torch.dtype) -> None:
    """GGUF's, which fit a byte; others see inputs as they are."""
    layout = super_codebook(43, 512, scale_type)
    check(int8_ops, layout, rows, True, 8, layout.group)
    layout = replace(layout, table=layout.table / 3)
    plain, x = CpuOps(2, int8_ops.instruction_set), torch.randn(rows, 512)  # type: ignore[attr-defined]
    assert torch.equal(int8_ops.linear(x, int8_ops.pack(layout)), plain.linear(x, plain.pack(layout)))


def test_the_largest_sums(int8_ops: Ops) -> None:
    """No sum of a few products may be cut off: all elements and all inputs are the largest there are."""
    for bits in (2, 3, 4, 5, 6, 8):
        layout = grouped(16, 256, bits, 256, False, torch.float32, 0, False)
        layout.q.fill_(-128 if bits == 8 else (1 << bits) - 1)
        x = torch.ones(2, 256)
        x[1] = -1
        want = x.double() @ matrix(layout).T
        torch.testing.assert_close(int8_ops.linear(x, int8_ops.pack(layout)).double(), want, rtol=1e-6, atol=0)


def test_a_row_does_not_depend_on_the_others(int8_ops: Ops) -> None:
    packed = int8_ops.pack(grouped(50, 256, 4, 32, True, torch.float16))
    x = torch.randn(40, 256)
    together = int8_ops.linear(x, packed)
    for row in (0, 7, 39):
        assert torch.equal(int8_ops.linear(x[row : row + 1], packed)[0], together[row])


def test_extreme_inputs(int8_ops: Ops) -> None:
    packed = int8_ops.pack(grouped(16, 64, 4, 32, True, torch.float32))
    x = torch.zeros(4, 64)
    x[1], x[2, 40], x[3, 40] = 1e-38, torch.nan, torch.inf
    got = int8_ops.linear(x, packed)
    assert (got[:2].abs() < 1e-30).all()
    assert not got[2:].isfinite().any()
