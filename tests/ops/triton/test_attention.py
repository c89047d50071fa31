"""Attention over pages and the pass that fills them, against the reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from quire.ops.backend import Singles
from quire.ops.triton import TritonOps
from quire.ops.triton.decode import split_count
from tests.ops.triton.harness import REFERENCE, TOLERANCE, close, draw, given, make_pages, make_step, moved

DECODE = [(1, 1), (17, 1), (200, 1), (64, 1)]
MIXED = [(1, 1), (40, 40), (17, 1), (140, 33), (64, 5)]
HEADS = [(3, 3), (6, 2), (14, 2), (5, 1)]


def check(
    ops: TritonOps,
    sequences: list[tuple[int, int]],
    heads: int,
    kv_heads: int,
    head_dim: int,
    page_size: int = 128,
    window: int | None = None,
    softcap: float | None = None,
    extras: dict[str, torch.Tensor] | None = None,
) -> None:
    step, total = make_step(sequences, page_size)
    want_pages, pages = make_pages(ops, step, total, kv_heads, head_dim, ops.dtype)
    q = draw(ops, len(step.positions), heads * head_dim)
    shape = (heads, kv_heads, head_dim, 1.5 * head_dim**-0.5, window, softcap)
    extras = extras or {}
    want = REFERENCE.attention(q, want_pages, step, *shape, **extras)
    device_extras = {name: value.to(ops.device) for name, value in extras.items()}
    got = ops.attention(given(ops, q), pages, moved(step, ops.device), *shape, **device_extras)
    close(got, want)


@pytest.mark.parametrize("sequences", [DECODE, MIXED], ids=["decode", "mixed"])
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 192, 256])
def test_head_sizes(ops: TritonOps, sequences: list[tuple[int, int]], head_dim: int) -> None:
    check(ops, sequences, 4, 2, head_dim)


@pytest.mark.parametrize("sequences", [DECODE, MIXED], ids=["decode", "mixed"])
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_groups(ops: TritonOps, sequences: list[tuple[int, int]], heads: int, kv_heads: int) -> None:
    check(ops, sequences, heads, kv_heads, 64)


@pytest.mark.parametrize("sequences", [DECODE, [*MIXED, (300, 70)]], ids=["decode", "mixed"])
@pytest.mark.parametrize(("window", "softcap"), [(1, None), (50, 3.0), (128, None), (None, 5.0), (4000, None)])
def test_window_and_softcap(
    float_ops: TritonOps, sequences: list[tuple[int, int]], window: int | None, softcap: float | None
) -> None:
    check(float_ops, sequences, 4, 2, 64, window=window, softcap=softcap)


@pytest.mark.parametrize("sequences", [DECODE, MIXED], ids=["decode", "mixed"])
@pytest.mark.parametrize("page_size", [16, 64])
def test_page_sizes(float_ops: TritonOps, sequences: list[tuple[int, int]], page_size: int) -> None:
    check(float_ops, sequences, 4, 2, 64, page_size)


@pytest.mark.parametrize("sequences", [DECODE, MIXED], ids=["decode", "mixed"])
@pytest.mark.parametrize("name", ["sinks", "alibi_slopes"])
def test_sinks_and_slopes(ops: TritonOps, sequences: list[tuple[int, int]], name: str) -> None:
    values = torch.randn(4) * 2 if name == "sinks" else torch.rand(4)
    check(ops, sequences, 4, 2, 64, extras={name: values})
    check(ops, sequences, 4, 2, 64, window=40, extras={name: values})


def test_long_contexts_are_split_and_merged(ops: TritonOps) -> None:
    assert split_count(1, 1, 132) > 8
    check(ops, [(1500, 1)], 3, 1, 64)
    check(ops, [(900, 1), (20, 1)], 4, 2, 64, window=700, extras={"sinks": torch.randn(4)})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pages_narrower_than_queries(float_ops: TritonOps, dtype: torch.dtype) -> None:
    step, total = make_step(DECODE, 128)
    want_pages, pages = make_pages(float_ops, step, total, 2, 64, dtype)
    want_pages.k.copy_(pages.k.float().cpu())
    want_pages.v.copy_(pages.v.float().cpu())
    q = torch.randn(len(DECODE), 4 * 64)
    want = REFERENCE.attention(q, want_pages, step, 4, 2, 64, 0.125, None, None)
    close(
        float_ops.attention(given(float_ops, q), pages, moved(step, float_ops.device), 4, 2, 64, 0.125, None, None),
        want,
    )


def test_padding_rows_change_nothing(ops: TritonOps) -> None:
    step, total = make_step(DECODE, 128)
    _, pages = make_pages(ops, step, total, 2, 64, ops.dtype)
    q = draw(ops, 4, 256).to(ops.device, ops.dtype)
    want = ops.attention(q, pages, moved(step, ops.device), 4, 2, 64, 1.0, None, None)
    step.context_len[1] = 0
    got = ops.attention(q, pages, moved(step, ops.device), 4, 2, 64, 1.0, None, None)
    others = [0, 2, 3]
    assert torch.equal(got[others], want[others])


@pytest.mark.parametrize("page_size", [16, 128])
def test_single_queries_beside_longer_ones(ops: TritonOps, page_size: int) -> None:
    sequences = [(200, 1), (17, 1), (1, 1), (90, 30), (40, 40), (300, 5)]
    step, total = make_step(sequences, page_size)
    want_pages, pages = make_pages(ops, step, total, 2, 32, ops.dtype)
    q = draw(ops, len(step.positions), 128)
    want = REFERENCE.attention(q, want_pages, step, 4, 2, 32, 0.2, None, None)
    alone = step.context_len.clone()
    alone[3:] = 0
    there = moved(step, ops.device)
    singles = Singles(alone.to(ops.device), there.query_start.clamp(min=3), others=4)
    got = ops.attention(given(ops, q), pages, replace(there, singles=singles), 4, 2, 32, 0.2, None, None)
    close(got, want)


def test_a_broken_sequence_stays_alone(ops: TritonOps) -> None:
    for sequences, at in ((DECODE, 2), (MIXED, 41)):
        step, total = make_step(sequences, 128)
        _, pages = make_pages(ops, step, total, 2, 64, ops.dtype)
        q = given(ops, draw(ops, len(step.positions), 256))
        there = moved(step, ops.device)
        clean = ops.attention(q, pages, there, 4, 2, 64, 0.125, None, None)
        q[at] = float("nan")
        got = ops.attention(q, pages, there, 4, 2, 64, 0.125, None, None)
        others = [i for i in range(len(q)) if i != at]
        assert got[at].isnan().all()
        assert torch.equal(got[others], clean[others])


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(64, 64), (64, 20), (80, 32), (96, 0), (256, 256)])
def test_norm_rope_store(ops: TritonOps, head_dim: int, rotary_dim: int, norm: bool, interleaved: bool) -> None:
    heads, kv_heads = 5, 1
    step, total = make_step([(30, 6), (200, 3)], 16)
    angles = torch.randn(200, rotary_dim // 2)
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1) if rotary_dim else None
    q_norm, k_norm = (torch.rand(head_dim) + 0.5, torch.rand(head_dim) + 0.5) if norm else (None, None)
    qkv = draw(ops, 9, (heads + 2 * kv_heads) * head_dim)
    want_pages, pages = make_pages(ops, step, total, kv_heads, head_dim, ops.dtype)
    shape = (heads, kv_heads, head_dim)
    want = REFERENCE.qk_norm_rope_store(qkv, *shape, q_norm, k_norm, 1e-6, cos_sin, interleaved, want_pages, step)
    there = moved(step, ops.device)
    there.slots[4] = -1  # a padding row: written nowhere
    vectors = [None if t is None else t.to(ops.device) for t in (q_norm, k_norm)]
    table = None if cos_sin is None else cos_sin.to(ops.device)
    before = pages.k.flatten(0, 1)[step.slots[4]].clone()
    got = ops.qk_norm_rope_store(given(ops, qkv), *shape, *vectors, 1e-6, table, interleaved, pages, there)
    close(got, want)
    rows = [0, 1, 2, 3, 5, 6, 7, 8]
    for mine, theirs in ((pages.k, want_pages.k), (pages.v, want_pages.v)):
        close(mine.flatten(0, 1)[step.slots[rows].to(ops.device)], theirs.flatten(0, 1)[step.slots[rows]])
    torch.testing.assert_close(pages.k.flatten(0, 1)[step.slots[4]], before, equal_nan=True)


def test_values_in_pages_are_finite(ops: TritonOps) -> None:
    """Stale rows of a page meet weights of 0 in FlashAttention-4, where NaN would still spread."""
    step, total = make_step([(20, 2)], 16)
    pages = ops.new_pages(total, 16, 1, 64, ops.dtype)
    qkv = draw(ops, 2, 3 * 64)
    qkv[0, 128:] = float("nan")
    qkv[1, 128:] = float("inf")
    ops.qk_norm_rope_store(given(ops, qkv), 1, 1, 64, None, None, 1e-6, None, False, pages, moved(step, ops.device))
    assert pages.v.isfinite().all()


def eighths(*shape: int) -> torch.Tensor:
    """Rows whose greatest number is 448 times a power of 2, and whose others e4m3 then holds exactly."""
    values = (torch.randn(*shape) * 60).to(torch.float8_e4m3fn).float()
    values[..., 5] = 448
    return values * 2.0 ** torch.randint(-3, 4, (*shape[:-1], 1))


@pytest.mark.parametrize("sequences", [DECODE, MIXED], ids=["decode", "mixed"])
def test_fp8_pages(ops: TritonOps, sequences: list[tuple[int, int]]) -> None:
    """Each head of each token has a scale of its own: what fits is stored exactly, and read so."""
    step, total = make_step([(length, length) for length, _ in sequences], 128)
    pages = ops.new_pages(total, 128, 2, 64, torch.float8_e4m3fn)
    want_pages = REFERENCE.new_pages(total, 128, 2, 64, torch.float32)
    qkv = eighths(len(step.positions), 8, 64).flatten(1)
    there = moved(step, ops.device)
    ops.qk_norm_rope_store(given(ops, qkv), 4, 2, 64, None, None, 1e-6, None, False, pages, there)
    REFERENCE.qk_norm_rope_store(qkv, 4, 2, 64, None, None, 1e-6, None, False, want_pages, step)
    for stored, scale, want in ((pages.k, pages.k_scale, want_pages.k), (pages.v, pages.v_scale, want_pages.v)):
        values = (stored.float() * scale.transpose(1, 2)[..., None]).flatten(0, 1)[there.slots]
        assert torch.equal(values.cpu(), want.flatten(0, 1)[step.slots])
    table = step.block_table
    step, _ = make_step(sequences, 128)
    step.block_table.copy_(table)
    q = draw(ops, len(step.positions), 4 * 64)
    shape = (4, 2, 64, 1e-4, None, None)
    want = REFERENCE.attention(q, want_pages, step, *shape)
    got = ops.attention(given(ops, q), pages, moved(step, ops.device), *shape)
    most = want.abs().max()
    torch.testing.assert_close(got.float().cpu() / most, want / most, rtol=0, atol=max(TOLERANCE[ops.dtype], 1e-3))
