"""Attention over pages, and the pass that fills them, against float64 formulas on plain (unpaged) tensors."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from quire.ops.backend import AttentionStep, Ops, Pages

TOLERANCE = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 3e-2}


@dataclass
class Case:
    """Sequences of (context length, query count), with their keys and values in scattered pages."""

    sequences: list[tuple[int, int]]
    heads: int
    kv_heads: int
    head_dim: int
    page_size: int = 16
    dtype: torch.dtype = torch.float32

    def build(self, ops: Ops) -> tuple[Pages, AttentionStep, list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
        """Pages (unused entries NaN), the step, keys and values of each sequence, queries."""
        needed = [-(-length // self.page_size) for length, _ in self.sequences]
        total = sum(needed) + 3
        order = torch.randperm(total).tolist()
        table = torch.full((len(self.sequences), max(needed) + 2), 2**30, dtype=torch.int32)
        pages = ops.new_pages(total, self.page_size, self.kv_heads, self.head_dim, self.dtype)
        pages.k.fill_(float("nan"))
        pages.v.fill_(float("nan"))
        keys, values = [], []
        for s, (length, _) in enumerate(self.sequences):
            ids = [order.pop() for _ in range(needed[s])]
            table[s, : len(ids)] = torch.tensor(ids, dtype=torch.int32)
            size, at = self.page_size, torch.arange(length)
            slots = torch.tensor(ids)[at // size] * size + at % size
            keys.append(torch.randn(length, self.kv_heads, self.head_dim))
            values.append(torch.randn(length, self.kv_heads, self.head_dim))
            fill(ops, pages, keys[-1], values[-1], slots)
        counts = [count for _, count in self.sequences]
        lengths = torch.tensor([length for length, _ in self.sequences], dtype=torch.int32)
        start = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()], dtype=torch.int32)
        positions = torch.cat([torch.arange(length - count, length) for length, count in self.sequences]).int()
        unused = torch.zeros(len(positions), dtype=torch.int64)
        step = AttentionStep(positions, unused, start, lengths, table, self.page_size, max(counts))
        return pages, step, keys, values, torch.randn(sum(counts), self.heads * self.head_dim)


def fill(ops: Ops, pages: Pages, k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor) -> None:
    """Store ``k`` and ``v`` ``[T, G, D]`` through the op, without norm or rotation."""
    tokens, kv_heads, head_dim = k.shape
    none = torch.zeros(tokens, dtype=torch.int32)
    start = torch.tensor([0, tokens], dtype=torch.int32)
    step = AttentionStep(none, slots, start, start[1:], torch.zeros(1, 1, dtype=torch.int32), pages.page_size, tokens)
    qkv = torch.cat((torch.zeros(tokens, head_dim * kv_heads), k.flatten(1), v.flatten(1)), dim=1)
    ops.qk_norm_rope_store(qkv, kv_heads, kv_heads, head_dim, None, None, 1e-6, None, False, pages, step)


def expected(
    case: Case,
    keys: list[torch.Tensor],
    values: list[torch.Tensor],
    q: torch.Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None = None,
    slopes: torch.Tensor | None = None,
) -> torch.Tensor:
    rows, out, at = case.heads // case.kv_heads, [], 0
    for (length, count), k, v in zip(case.sequences, keys, values, strict=True):
        queries = q[at : at + count].double().view(count, case.heads, case.head_dim)
        at += count
        scores = torch.einsum("qhd,khd->hqk", queries, k.double().repeat_interleave(rows, 1)) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        query_pos, key_pos = torch.arange(length - count, length)[:, None], torch.arange(length)[None]
        if slopes is not None:
            scores = scores + slopes.double()[:, None, None] * (key_pos - query_pos)
        visible = key_pos <= query_pos
        if window is not None:
            visible &= key_pos > query_pos - window
        scores = scores.masked_fill(~visible, float("-inf"))
        if sinks is not None:
            scores = torch.cat((scores, sinks.double()[:, None, None].expand(-1, count, 1)), dim=-1)
        probs = scores.softmax(-1)[..., :length]
        out.append(torch.einsum("hqk,khd->qhd", probs, v.double().repeat_interleave(rows, 1)).flatten(1))
    return torch.cat(out)


def check(
    ops: Ops,
    case: Case,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    slopes: torch.Tensor | None = None,
) -> None:
    pages, step, keys, values, q = case.build(ops)
    scale = case.head_dim**-0.5 * 2
    shape = (case.heads, case.kv_heads, case.head_dim)
    got = ops.attention(q, pages, step, *shape, scale, window, softcap, sinks, slopes)
    want = expected(case, keys, values, q, scale, window, softcap, sinks, slopes)
    assert got.shape == want.shape
    tolerance = TOLERANCE[case.dtype]
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


MIXED = [(1, 1), (17, 1), (40, 40), (16, 16), (100, 33), (300, 1), (64, 5), (33, 2)]


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (4, 2), (9, 3), (14, 2), (4, 1)])
def test_mixed_batch(ops: Ops, heads: int, kv_heads: int, head_dim: int) -> None:
    torch.manual_seed(heads)
    check(ops, Case(MIXED, heads, kv_heads, head_dim))


@pytest.mark.parametrize("window", [1, 7, 16, 50, 512])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_window_and_softcap(ops: Ops, window: int, softcap: float | None) -> None:
    torch.manual_seed(window)
    check(ops, Case([*MIXED, (700, 1), (600, 70)], 4, 2, 64), window, softcap)


def test_softcap_alone(ops: Ops) -> None:
    torch.manual_seed(0)
    check(ops, Case(MIXED, 4, 2, 64), None, 5.0)


@pytest.mark.parametrize("window", [None, 20])
def test_sinks(ops: Ops, window: int | None) -> None:
    torch.manual_seed(0)
    check(ops, Case([*MIXED, (3000, 1)], 6, 2, 64), window, sinks=torch.randn(6) * 4)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
def test_alibi(ops: Ops, heads: int, kv_heads: int) -> None:
    torch.manual_seed(0)
    slopes = 2.0 ** -(torch.arange(heads) + 1.0)
    case = Case([*MIXED, (3000, 1)], heads, kv_heads, 64)
    check(ops, case, slopes=slopes)
    check(ops, case, window=50, softcap=5.0, slopes=slopes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [64, 72])
def test_half_pages(ops: Ops, dtype: torch.dtype, head_dim: int) -> None:
    torch.manual_seed(0)
    check(ops, Case(MIXED, 6, 2, head_dim, dtype=dtype), 100)


@pytest.mark.parametrize("page_size", [16, 32, 128])
def test_page_sizes(ops: Ops, page_size: int) -> None:
    torch.manual_seed(0)
    check(ops, Case(MIXED, 9, 3, 64, page_size))


def test_long_context_is_split_and_merged(ops: Ops) -> None:
    torch.manual_seed(0)
    check(ops, Case([(3000, 1)], 3, 1, 64))
    check(ops, Case([(2500, 3), (20, 1)], 8, 2, 64), window=2000)


def test_long_prefill(ops: Ops) -> None:
    torch.manual_seed(0)
    check(ops, Case([(700, 700)], 3, 1, 64))
    check(ops, Case([(900, 200), (300, 300)], 6, 3, 128), window=128)


def test_strong_scores(ops: Ops) -> None:
    """A softmax without a running maximum would overflow here."""
    torch.manual_seed(0)
    case = Case([(600, 1), (200, 200)], 2, 1, 64)
    pages, step, keys, values, q = case.build(ops)
    q = q * 200
    got = ops.attention(q, pages, step, 2, 1, 64, 1.0, None, None)
    torch.testing.assert_close(got.double(), expected(case, keys, values, q, 1.0, None, None), rtol=1e-2, atol=1e-2)


def test_a_broken_sequence_stays_alone(ops: Ops) -> None:
    torch.manual_seed(0)
    case = Case([(30, 30), (50, 1), (40, 8)], 6, 2, 64)
    pages, step, _, _, q = case.build(ops)
    clean = ops.attention(q, pages, step, 6, 2, 64, 0.125, None, None)
    q = q.clone()
    q[30] = float("nan")
    got = ops.attention(q, pages, step, 6, 2, 64, 0.125, None, None)
    assert got[30].isnan().all()
    torch.testing.assert_close(got[[*range(30), *range(31, 39)]], clean[[*range(30), *range(31, 39)]])


def test_queries_may_be_a_view(ops: Ops) -> None:
    torch.manual_seed(0)
    case = Case([(30, 30), (50, 1)], 4, 2, 64)
    pages, step, keys, values, q = case.build(ops)
    wide = torch.randn(31, 8 * 64)
    wide[:, : 4 * 64] = q
    got = ops.attention(wide[:, : 4 * 64], pages, step, 4, 2, 64, 0.125, None, None)
    want = expected(case, keys, values, q, 0.125, None, None)
    torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=2e-5)


def turned(x: torch.Tensor, positions: torch.Tensor, rotary_dim: int, interleaved: bool) -> torch.Tensor:
    """Rotary embedding of ``x [T, H, D]`` as complex multiplication, in float64."""
    half = rotary_dim // 2
    angle = positions.double()[:, None] * frequencies(half)[None]
    turn = torch.polar(torch.ones_like(angle), angle)[:, None]
    out = x.double().clone()
    a, b = slice(0, half), slice(half, rotary_dim)
    if interleaved:
        a, b = slice(0, rotary_dim, 2), slice(1, rotary_dim, 2)
    z = torch.complex(out[..., a], out[..., b]) * turn
    out[..., a], out[..., b] = z.real, z.imag
    return out


def frequencies(half: int) -> torch.Tensor:
    return 10000.0 ** -(torch.arange(half).double() / half)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(64, 64), (64, 20), (80, 32), (256, 256), (96, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_norm_rope_store(
    ops: Ops, head_dim: int, rotary_dim: int, norm: bool, interleaved: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(head_dim)
    tokens, heads, kv_heads, size = 21, 6, 2, 16
    positions = torch.randint(0, 500, (tokens,), dtype=torch.int32)
    slots = torch.randperm(5 * size)[:tokens]
    table = torch.arange(5, dtype=torch.int32)[None]
    start = torch.tensor([0, tokens], dtype=torch.int32)
    step = AttentionStep(positions, slots, start, start[1:], table, size, tokens)
    angle = torch.arange(500).double()[:, None] * frequencies(rotary_dim // 2)[None]
    cos_sin = torch.cat((angle.cos(), angle.sin()), dim=1).float() if rotary_dim else None
    q_norm, k_norm = (torch.rand(head_dim) + 0.5, torch.rand(head_dim) + 0.5) if norm else (None, None)
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * head_dim)
    q, k, v = qkv.clone().view(tokens, -1, head_dim).double().split([heads, kv_heads, kv_heads], dim=1)
    if q_norm is not None and k_norm is not None:
        q = q / (q.square().mean(-1, keepdim=True) + 1e-6).sqrt() * q_norm.double()
        k = k / (k.square().mean(-1, keepdim=True) + 1e-6).sqrt() * k_norm.double()
    if rotary_dim:
        q, k = (turned(x, positions, rotary_dim, interleaved) for x in (q, k))
    pages = ops.new_pages(5, size, kv_heads, head_dim, dtype)
    got = ops.qk_norm_rope_store(
        qkv, heads, kv_heads, head_dim, q_norm, k_norm, 1e-6, cos_sin, interleaved, pages, step
    )
    torch.testing.assert_close(got.double(), q.flatten(1), rtol=1e-4, atol=1e-5)
    stored_k, stored_v = pages.k, pages.v
    if ops.name == "cpu":
        stored_k, stored_v = stored_k.permute(0, 3, 1, 2), stored_v.transpose(1, 2)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-3
    for stored, want in ((stored_k, k), (stored_v, v)):
        found = stored.flatten(0, 1)[slots].double()
        torch.testing.assert_close(found, want, rtol=tolerance, atol=tolerance)


def test_half_conversion_is_exact(ops: Ops) -> None:
    """Storing in half precision rounds as torch does, subnormals and overflow included."""
    values = torch.cat((torch.randn(200), torch.randn(200) * 1e-5, torch.randn(100) * 1e-7, torch.randn(100) * 1e5))
    special = torch.tensor([0.0, -0.0, 65504.0, 65519.9, 65520.0, 6e-8, 2.9e-8, 6.1e-5])
    values = torch.cat((values, special)).view(-1, 1, 8)
    slots = torch.arange(len(values))
    for dtype in (torch.float16, torch.bfloat16):
        pages = ops.new_pages(16, 16, 1, 8, dtype)
        fill(ops, pages, values, values, slots)
        stored = pages.v.reshape(-1, 8)[: len(values)]  # one head: the order of v is that of the slots
        assert torch.equal(stored, values[:, 0].to(dtype))


def test_bad_indices_are_refused(cpu_ops: Ops) -> None:
    case = Case([(30, 30)], 4, 2, 64)
    pages, step, _, _, q = case.build(cpu_ops)
    qkv = torch.zeros(30, 8 * 64)
    bad_slots = AttentionStep(step.positions, step.slots + 10**6, *_rest(step))
    with pytest.raises(ValueError, match="slot"):
        cpu_ops.qk_norm_rope_store(qkv, 4, 2, 64, None, None, 1e-6, None, False, pages, bad_slots)
    table = torch.zeros(20, 64)
    with pytest.raises(ValueError, match="position"):
        cpu_ops.qk_norm_rope_store(qkv, 4, 2, 64, None, None, 1e-6, table, False, pages, step)
    wild = AttentionStep(
        step.positions,
        step.slots,
        step.query_start,
        step.context_len,
        step.block_table + 1000,
        step.page_size,
        step.max_query,
    )
    with pytest.raises(ValueError, match="page"):
        cpu_ops.attention(q, pages, wild, 4, 2, 64, 1.0, None, None)
    with pytest.raises(ValueError, match="multiple of 16"):
        cpu_ops.new_pages(4, 8, 2, 64, torch.float32)


def _rest(step: AttentionStep) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, int]:
    return step.query_start, step.context_len, step.block_table, step.page_size, step.max_query
