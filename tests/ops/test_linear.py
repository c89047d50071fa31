"""Products and embeddings against float64 matrices built from the layouts' definition."""

from __future__ import annotations

import pytest
import torch

from quire.ops.backend import Ops
from quire.ops.layouts import Dense, GroupedInt

ROWS = (1, 2, 3, 4, 5, 7, 16, 33, 200)


def grouped(n: int, k: int, bits: int, group: int, minimum: bool, scale_type: torch.dtype) -> GroupedInt:
    low, high, kind = (0, 16, torch.uint8) if bits == 4 else (-128, 128, torch.int8)
    q = torch.randint(low, high, (n, k), dtype=torch.int32).to(kind)
    scale = (torch.rand(n, k // group) * 0.1 + 0.001).to(scale_type)
    return GroupedInt(q, scale, torch.randn(n, k // group).to(scale_type) if minimum else None, bits, group)


def matrix(layout: GroupedInt | Dense) -> torch.Tensor:
    if isinstance(layout, Dense):
        return layout.weight.double()
    w = layout.q.double() * layout.scale.double().repeat_interleave(layout.group, dim=1)
    if layout.minimum is not None:
        w += layout.minimum.double().repeat_interleave(layout.group, dim=1)
    return w


def magnitude(layout: GroupedInt | Dense) -> torch.Tensor:
    """The sizes of what is added up to a weight: its rounding errors are proportional to them."""
    if isinstance(layout, Dense):
        return layout.weight.double().abs()
    minimum = None if layout.minimum is None else layout.minimum.abs()
    return matrix(GroupedInt(layout.q.int().abs(), layout.scale, minimum, layout.bits, layout.group))


def check(ops: Ops, layout: GroupedInt | Dense, rows: int, bias: bool) -> None:
    n, k = layout.shape
    x = torch.randn(rows, k)
    b = torch.randn(n) if bias else None
    w = matrix(layout)
    want = x.double() @ w.T + (0 if b is None else b.double())
    got = ops.linear(x, ops.pack(layout), b)
    assert got.shape == (rows, n)
    assert got.dtype == torch.float32
    size = x.double().abs() @ magnitude(layout).T + 1e-6
    assert ((got.double() - want).abs() / size).max() < 1e-6


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [8, 16, 32, 128, 256])
@pytest.mark.parametrize("minimum", [False, True])
def test_grouped(ops: Ops, rows: int, bits: int, group: int, minimum: bool) -> None:
    torch.manual_seed(rows)
    n = 40 + rows % 3 * 4 + (rows % 2)  # partial panels too
    scale_type = torch.float16 if rows % 2 else torch.float32
    check(ops, grouped(n, 256, bits, group, minimum, scale_type), rows, bias=bool(rows % 2))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dense(ops: Ops, rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(rows)
    for n, k in ((48, 64), (33, 50), (1, 1), (100, 700)):
        check(ops, Dense(torch.randn(n, k).to(dtype)), rows, bias=n == 33)


@pytest.mark.parametrize(("n", "k"), [(8, 32), (7, 32), (1, 1536), (65, 1536), (24, 4864)])
@pytest.mark.parametrize("rows", [1, 6, 13, 500])
def test_grouped_shapes(ops: Ops, n: int, k: int, rows: int) -> None:
    torch.manual_seed(n)
    check(ops, grouped(n, k, 4, 32, True, torch.float16), rows, bias=True)
    check(ops, grouped(n, k, 8, 32, False, torch.float16), rows, bias=False)


def test_extreme_values_do_not_overflow(ops: Ops) -> None:
    for group in (32, 256):
        q = torch.full((8, 512), -128, dtype=torch.int8)
        layout = GroupedInt(q, torch.ones(8, 512 // group), None, 8, group)
        x = torch.full((7, 512), 3.0)
        for rows in (1, 7):
            got = ops.linear(x[:rows], ops.pack(layout))
            torch.testing.assert_close(got, torch.full((rows, 8), -128.0 * 3 * 512))


def test_tiny_and_huge_inputs(ops: Ops) -> None:
    torch.manual_seed(0)
    layout = grouped(16, 64, 4, 32, True, torch.float32)
    packed, w = ops.pack(layout), matrix(layout)
    for size in (1e-20, 1e-3, 1e6, 1e20):
        x = torch.randn(3, 64) * size
        torch.testing.assert_close(ops.linear(x, packed).double(), x.double() @ w.T, rtol=1e-3, atol=1e-3 * size)
    assert (ops.linear(torch.zeros(2, 64), packed) == 0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("rows", [1, 3, 20])
def test_a_broken_row_stays_alone(ops: Ops, bad: float, rows: int) -> None:
    torch.manual_seed(0)
    for layout in (grouped(24, 64, 4, 32, False, torch.float16), Dense(torch.randn(24, 64))):
        packed = ops.pack(layout)
        x = torch.randn(rows, 64)
        clean = ops.linear(x, packed)
        x[rows // 2, 40] = bad
        got = ops.linear(x, packed)
        assert not got[rows // 2].isfinite().any()
        others = [r for r in range(rows) if r != rows // 2]
        torch.testing.assert_close(got[others], clean[others])


def test_rows_do_not_depend_on_the_batch(ops: Ops) -> None:
    torch.manual_seed(0)
    packed = ops.pack(grouped(64, 1536, 4, 32, True, torch.float16))
    x = torch.randn(50, 1536)
    whole = ops.linear(x, packed)
    for row in (0, 17, 49):
        torch.testing.assert_close(ops.linear(x[row : row + 1], packed)[0], whole[row], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("multiplier", [1.0, 24.0])
def test_embed(ops: Ops, multiplier: float) -> None:
    torch.manual_seed(0)
    ids = torch.tensor([0, 36, 5, 5, 17, 22, 1, 2, 3, 35])
    for layout in (
        grouped(37, 96, 8, 32, False, torch.float16),
        grouped(37, 96, 4, 16, True, torch.float32),
        *(Dense(torch.randn(37, 50).to(t)) for t in (torch.float32, torch.float16, torch.bfloat16)),
    ):
        want = matrix(layout)[ids] * multiplier
        got = ops.embed(ops.pack(layout), ids, multiplier)
        torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-5)


def test_packed_weights_stay_narrow(cpu_ops: Ops) -> None:
    n, k = 64, 1024
    assert cpu_ops.pack(grouped(n, k, 4, 32, True, torch.float16)).nbytes == n * k * 5 // 8
    assert cpu_ops.pack(grouped(n, k, 8, 32, False, torch.float16)).nbytes == n * k * 17 // 16
    assert cpu_ops.pack(Dense(torch.zeros(n, k, dtype=torch.bfloat16))).nbytes == n * k * 2


def test_pack_refuses_what_kernels_cannot_take(cpu_ops: Ops) -> None:
    good = grouped(8, 64, 4, 32, True, torch.float16)
    with pytest.raises(ValueError, match="multiple of its group"):
        cpu_ops.pack(GroupedInt(good.q[:, :48], good.scale, good.minimum, 4, 32))
    with pytest.raises(ValueError, match="4 or 8 bits"):
        cpu_ops.pack(GroupedInt(good.q, good.scale, good.minimum, 3, 32))
    with pytest.raises(ValueError, match="must come as"):
        cpu_ops.pack(GroupedInt(good.q, good.scale, good.minimum, 8, 32))
    with pytest.raises(ValueError, match="shape"):
        cpu_ops.pack(GroupedInt(good.q, good.scale[:4], good.minimum, 4, 32))
    with pytest.raises(ValueError, match="group must be"):
        cpu_ops.pack(GroupedInt(good.q[:, :48], good.scale, None, 4, 12))


def test_linear_refuses_wrong_shapes(cpu_ops: Ops) -> None:
    packed = cpu_ops.pack(Dense(torch.zeros(8, 64)))
    with pytest.raises(ValueError, match="does not fit"):
        cpu_ops.linear(torch.zeros(2, 32), packed)
    with pytest.raises(ValueError, match="does not fit"):
        cpu_ops.linear(torch.zeros(2, 64), packed, torch.zeros(7))
    with pytest.raises(ValueError, match="token id"):
        cpu_ops.embed(packed, torch.tensor([8]), 1.0)


def test_no_rows(ops: Ops) -> None:
    assert ops.linear(torch.zeros(0, 64), ops.pack(Dense(torch.zeros(8, 64)))).shape == (0, 8)
