"""Products and embeddings against float64 matrices built from the layouts' definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from quire.ops.backend import Ops
from quire.ops.layouts import Codebook, Dense, Fp8, GroupedInt, Int8Channel, Layout
from quire.ops.shapes import ActivationQuant

ROWS = (1, 2, 3, 4, 5, 7, 16, 33, 200)
FP8 = torch.float8_e4m3fn


def grouped(
    n: int,
    k: int,
    bits: int,
    group: int,
    minimum: bool,
    scale_type: torch.dtype,
    zero: int | str = 0,
    order: bool = False,
) -> GroupedInt:
    low, high, kind = (-128, 128, torch.int8) if bits == 8 else (0, 1 << bits, torch.uint8)
    q = torch.randint(low, high, (n, k), dtype=torch.int32).to(kind)
    scale = (torch.rand(n, k // group) * 0.1 + 0.001).to(scale_type)
    zeros = torch.randint(low, high, scale.shape, dtype=torch.int32).to(kind) if zero == "each" else int(zero)
    low_end = torch.randn(n, k // group).to(scale_type) if minimum else None
    return GroupedInt(q, scale, low_end, bits, group, zeros, torch.randperm(k) if order else None)


def super_blocks(n: int, k: int, bits: int, group: int, minimum: bool) -> GroupedInt:
    """As GGUF's K-quants have them."""
    q = torch.randint(0, 1 << bits, (n, k), dtype=torch.uint8)
    scale = torch.randint(0, 64, (n, k // group), dtype=torch.uint8)
    low_end = torch.randint(0, 64, scale.shape, dtype=torch.uint8) if minimum else None
    supers = [(torch.rand(n, k // 256) * 0.01).half() for _ in range(2)]
    zero = 0 if minimum else 1 << (bits - 1)
    return GroupedInt(q, scale, low_end, bits, group, zero, None, supers[0], supers[1] if minimum else None)


def codebook(n: int, k: int, group: int, exponents: bool) -> Codebook:
    q = torch.randint(0, 16, (n, k), dtype=torch.uint8)
    scale = torch.randint(110, 130, (n, k // group), dtype=torch.uint8) if exponents else torch.rand(n, k // group)
    return Codebook(q, torch.randn(16), scale, group)


def super_codebook(n: int, k: int, scale_type: torch.dtype) -> Codebook:
    """As GGUF's IQ4_XS (int8) and IQ4_NL (float16) have them."""
    q, table = torch.randint(0, 16, (n, k), dtype=torch.uint8), torch.randint(-127, 128, (16,)).float()
    if scale_type == torch.float16:
        return Codebook(q, table, torch.rand(n, k // 32).half(), 32)
    scale = torch.randint(-32, 32, (n, k // 32)).to(scale_type)
    return Codebook(q, table, scale, 32, (torch.rand(n, k // 256) * 0.01).half())


def fp8(n: int, k: int, high: int, wide: int, activation: ActivationQuant | None = None) -> Fp8:
    scale = torch.rand(-(-n // high), -(-k // wide)) + 0.1
    return Fp8((torch.randn(n, k) * 40).to(FP8), scale, (high, wide), activation)


def int8(n: int, k: int, activation: ActivationQuant | None = None) -> Int8Channel:
    return Int8Channel(torch.randint(-128, 128, (n, k)).to(torch.int8), torch.rand(n) * 0.1, activation)


def each(scales: torch.Tensor, group: int) -> torch.Tensor:
    return scales.double().repeat_interleave(group, dim=1)


def matrix(layout: Layout) -> torch.Tensor:
    match layout:
        case Dense():
            return layout.weight.double()
        case Codebook():
            scale = layout.scale.double()
            scale = 2.0 ** (scale - 127) if layout.scale.dtype == torch.uint8 else scale
            scale = scale if layout.super_scale is None else scale * each(layout.super_scale, 256 // layout.group)
            return layout.table.double()[layout.q.long()] * each(scale, layout.group)
        case Int8Channel():
            return layout.weight.double() * layout.scale.double()[:, None]
        case Fp8():
            n, k = layout.shape
            rows, columns = torch.arange(n) // layout.block[0], torch.arange(k) // layout.block[1]
            return layout.weight.double() * layout.scale.double()[rows][:, columns]
    scale, minimum = layout.scale.double(), layout.minimum
    if layout.super_scale is not None:
        per = 256 // layout.group
        scale = scale * each(layout.super_scale, per)
        minimum = None if minimum is None else minimum.double() * each(layout.super_minimum, per)
    zero = layout.zero if isinstance(layout.zero, int) else each(layout.zero, layout.group)
    w = (layout.q.double() - zero) * each(scale, layout.group)
    if minimum is not None:
        w += each(minimum, layout.group)
    return w if layout.order is None else w[:, layout.order.argsort()]


def magnitude(layout: Layout) -> torch.Tensor:
    """The sizes of what is added up to a weight: its rounding errors are proportional to them."""
    if not isinstance(layout, GroupedInt):
        return matrix(layout).abs()
    minimum = None if layout.minimum is None else layout.minimum.abs()
    unsigned = replace(layout, q=layout.q.int().abs(), zero=0, minimum=minimum)
    if isinstance(layout.zero, torch.Tensor):
        return matrix(unsigned) + matrix(
            replace(unsigned, q=layout.zero.int().abs().repeat_interleave(layout.group, dim=1))
        )
    return matrix(unsigned) + matrix(replace(unsigned, q=torch.full_like(layout.q, abs(layout.zero))))


def check(ops: Ops, layout: Layout, rows: int, bias: bool, limit: float = 1e-6) -> None:
    n, k = layout.shape
    x = torch.randn(rows, k)
    b = torch.randn(n) if bias else None
    w = matrix(layout)
    want = x.double() @ w.T + (0 if b is None else b.double())
    got = ops.linear(x, ops.pack(layout), b)
    assert got.shape == (rows, n)
    assert got.dtype == torch.float32
    size = x.double().abs() @ magnitude(layout).T + 1e-6
    assert ((got.double() - want).abs() / size).max() < limit


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


@pytest.mark.parametrize("rows", [1, 2, 5, 24, 60])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("group", [16, 32, 128, 384, 768])
def test_widths_zeros_and_orders(ops: Ops, rows: int, bits: int, group: int) -> None:
    torch.manual_seed(bits)
    half = 0 if bits == 8 else 1 << (bits - 1)
    for zero, order in ((half, False), ("each", True)):
        check(ops, grouped(43, 768, bits, group, False, torch.float16, zero, order), rows, bias=order)


@pytest.mark.parametrize("rows", [1, 3, 60])
@pytest.mark.parametrize(
    ("bits", "group", "minimum"),
    [(2, 16, True), (3, 16, False), (4, 32, True), (5, 32, True), (6, 16, False)],
)
def test_super_blocks(ops: Ops, rows: int, bits: int, group: int, minimum: bool) -> None:
    torch.manual_seed(bits)
    check(ops, super_blocks(43, 1536, bits, group, minimum), rows, bias=True)


@pytest.mark.parametrize("rows", [1, 2, 5, 60])
@pytest.mark.parametrize(
    "make",
    [
        lambda: codebook(43, 256, 32, exponents=True),
        lambda: codebook(43, 256, 64, exponents=False),
        lambda: super_codebook(43, 512, torch.int8),
        lambda: super_codebook(43, 512, torch.float16),
        lambda: int8(43, 320),
        lambda: int8(43, 8 * 67),
        lambda: fp8(43, 320, 43, 320),
        lambda: fp8(43, 320, 1, 320),
        lambda: fp8(130, 200, 128, 128),
    ],
)
def test_codebooks_and_eight_bits(ops: Ops, rows: int, make: Callable[[], Layout]) -> None:
    torch.manual_seed(rows)
    check(ops, make(), rows, bias=rows == 2)


def test_all_fp8_values_and_exponents(ops: Ops) -> None:
    values = torch.arange(256).to(torch.uint8)
    values[values & 127 == 127] = 0  # no number
    layout = Fp8(values.view(FP8).view(8, 32), torch.ones(1, 1), (8, 32))
    got = ops.embed(ops.pack(layout), torch.arange(8), 1.0)
    assert torch.equal(got, layout.weight.float())
    scale = torch.arange(8 * 31, dtype=torch.uint8).view(8, 31)
    ones = Codebook(torch.ones(8, 31 * 8, dtype=torch.uint8), torch.ones(16), scale, 8)
    got = ops.embed(ops.pack(ones), torch.arange(8), 1.0)
    assert torch.equal(got[:, ::8].double(), 2.0 ** (scale.double() - 127))


@pytest.mark.parametrize(
    "make", [lambda: grouped(9, 36, 4, 12, False, torch.float16, 8), lambda: codebook(9, 20, 4, True)]
)
def test_groups_that_no_kernel_takes(ops: Ops, make: Callable[[], Layout]) -> None:
    torch.manual_seed(0)
    for rows in (1, 30):
        check(ops, make(), rows, bias=True)


def to_fp8(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(-448, 448).to(FP8).double()


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("case", ["int8", "int8-scale", "int8-fixed", "int8-zero", "fp8", "fp8-fixed", "fp8-groups"])
def test_rounded_inputs(ops: Ops, rows: int, case: str) -> None:
    """Scales are as compressed-tensors works them out; exact products of rounded inputs and weights follow."""
    torch.manual_seed(rows)
    x = torch.randn(rows, 256) * torch.logspace(-3, 3, rows)[:, None]
    top = x.abs().amax(1, keepdim=True)
    if case == "int8":
        how, scale = ActivationQuant("int8"), top / 127.5
        want = (x / scale).round().clamp(-128, 127).double() * scale
    elif case == "int8-scale":
        how, scale = ActivationQuant("int8", scale=0.05), torch.tensor(0.05).double()
        want = (x / 0.05).round().clamp(-128, 127).double() * scale
    elif case == "int8-fixed":
        how = ActivationQuant("int8", scale=0.05, zero=3)
        want = ((x / 0.05 + 3).round().clamp(-128, 127).double() - 3) * torch.tensor(0.05).double()
    elif case == "int8-zero":
        how, low = ActivationQuant("int8", symmetric=False), x.amin(1, keepdim=True)
        scale = (x.amax(1, keepdim=True) - low) / 255
        zero = (-128 - low / scale).round().clamp(-128, 127)
        want = ((x / scale + zero).round().clamp(-128, 127).double() - zero) * scale
    elif case == "fp8":
        how, scale = ActivationQuant("fp8"), top / 448
        want = to_fp8(x / scale) * scale
    elif case == "fp8-fixed":
        how, scale = ActivationQuant("fp8", scale=0.01), torch.tensor(0.01)
        want = to_fp8(x / scale) * scale
    else:
        how, parts = ActivationQuant("fp8", group=96), x.split(96, dim=1)  # the last is narrower
        scales = [part.abs().amax(1, keepdim=True) / 448 for part in parts]
        want = torch.cat([to_fp8(p / s) * s for p, s in zip(parts, scales, strict=True)], dim=1)
    layout = int8(24, 256, how) if how.kind == "int8" else fp8(24, 256, 24, 256, how)
    got, w = ops.linear(x, ops.pack(layout)), matrix(layout)
    assert ((got - want @ w.T).abs() / (want.abs() @ w.abs().T + 1e-9)).max() < 2e-6


def test_layers_side_by_side(ops: Ops) -> None:
    torch.manual_seed(0)
    layouts: list[Layout] = [
        grouped(24, 256, 4, 32, True, torch.float16),
        grouped(8, 256, 4, 32, True, torch.float16),
        fp8(20, 256, 20, 256),
        fp8(12, 256, 12, 256),
        int8(16, 256),
        Dense(torch.randn(11, 256)),
    ]
    bias = torch.randn(91)
    packed = ops.pack(*layouts)
    assert packed.shape == (91, 256)
    for rows in (1, 4, 50):
        x = torch.randn(rows, 256)
        alone = torch.cat([ops.linear(x, ops.pack(layout)) for layout in layouts], dim=1)
        torch.testing.assert_close(ops.linear(x, packed, bias), alone + bias, rtol=1e-5, atol=1e-4)


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
    rounding = int8(24, 64, ActivationQuant("int8"))
    for layout in (grouped(24, 64, 4, 32, False, torch.float16), rounding, Dense(torch.randn(24, 64))):
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
    assert cpu_ops.pack(grouped(n, k, 5, 32, False, torch.float16, 16)).nbytes == n * k * 11 // 16
    assert cpu_ops.pack(super_blocks(n, k, 6, 16, False)).nbytes == n * k * 105 // 128
    assert cpu_ops.pack(grouped(n, k, 4, 128, False, torch.float16, "each")).nbytes == n * k * 67 // 128
    assert cpu_ops.pack(codebook(n, k, 32, exponents=True)).nbytes == n * k * 17 // 32
    assert cpu_ops.pack(fp8(n, k, 128, 128)).nbytes == n * k * 33 // 32


def test_pack_refuses_what_makes_no_layout(cpu_ops: Ops) -> None:
    good = grouped(8, 64, 4, 32, True, torch.float16)
    for wrong, words in (
        (replace(good, q=good.q[:, :48]), "multiple of its group"),
        (replace(good, bits=9), "2 to 8 bits"),
        (replace(good, bits=8), "must come as"),
        (replace(good, scale=good.scale[:4]), "shape"),
        (replace(good, scale=good.scale.float()), "one type"),
        (replace(good, zero=good.q[:, :2]), "not both"),
        (replace(good, minimum=None, zero=good.q[:, :1]), "shape"),
    ):
        with pytest.raises(ValueError, match=words):
            cpu_ops.pack(wrong)


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
