"""Products whose inputs are rounded to 16 bits: as exact as that allows, the same for a row in any company."""

from __future__ import annotations

import pytest
import torch

from quire.ops.backend import Ops
from tests.ops.test_linear import check, grouped, int8, super_blocks

CpuOps = pytest.importorskip("quire.ops.cpu.ops", reason="the CPU kernels are not built").CpuOps
INSTRUCTION_SETS = pytest.importorskip("quire.ops.cpu.ops").INSTRUCTION_SETS
LIMIT = 3e-5  # of the sum of the products' sizes: half of 2^-15, times the largest of a group over its mean


@pytest.fixture(scope="module", params=INSTRUCTION_SETS)
def int16_ops(request: pytest.FixtureRequest) -> Ops:
    return CpuOps(2, request.param, int16_inputs=True)  # type: ignore[no-any-return]


@pytest.mark.parametrize("rows", [1, 3, 8, 60])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_widths_zeros_and_orders(int16_ops: Ops, rows: int, bits: int) -> None:
    torch.manual_seed(bits)
    half = 0 if bits == 8 else 1 << (bits - 1)
    for group, zero, order in ((32, half, False), (384, "each", True)):
        check(int16_ops, grouped(43, 768, bits, group, False, torch.float16, zero, order), rows, order, LIMIT)


@pytest.mark.parametrize(("bits", "group", "minimum"), [(4, 32, True), (5, 32, True), (6, 16, False)])
def test_super_blocks(int16_ops: Ops, bits: int, group: int, minimum: bool) -> None:
    check(int16_ops, super_blocks(43, 1536, bits, group, minimum), 9, True, LIMIT)
    check(int16_ops, int8(43, 320), 9, True, LIMIT)


def test_a_row_does_not_depend_on_the_others(int16_ops: Ops) -> None:
    packed = int16_ops.pack(grouped(50, 256, 4, 32, True, torch.float16))
    x = torch.randn(40, 256)
    together = int16_ops.linear(x, packed)
    for row in (0, 7, 39):
        assert torch.equal(int16_ops.linear(x[row : row + 1], packed)[0], together[row])


def test_extreme_inputs(int16_ops: Ops) -> None:
    packed = int16_ops.pack(grouped(16, 64, 4, 32, True, torch.float32))
    x = torch.zeros(4, 64)
    x[1], x[2, 40], x[3, 40] = 1e-38, torch.nan, torch.inf
    got = int16_ops.linear(x, packed)
    assert (got[:2].abs() < 1e-30).all()
    assert not got[2:].isfinite().any()
