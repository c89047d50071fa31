"""Attention of one query a sequence over its pages, the context split over programs (flash-decoding, Dao et al., 2023).

The grid depends on the batch size alone, so a CUDA graph can hold it: a program works out its share of the context
from the length on the device, and exits if there is none. The last program of a sequence's head to finish merges the
shares, which saves a launch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from quire.ops.backend import SHARED_ROWS, AttentionStep
from quire.ops.triton.attend import attend, finish, ready
from quire.ops.triton.launch import inputs_ready, launch
from quire.ops.triton.pages import TritonPages
from quire.ops.triton.shared import share_size, shared_attention, shared_block, shared_splits

MAX_COUNTERS = 1 << 16
_MAX_SPLITS = 64
_MIN_CHUNK = 64


@triton.jit(do_not_specialize=["scale", "softcap", "window", "most_splits", "most_shares"])
def _decode(
    q_ptr,
    k_ptr,
    v_ptr,
    k_scale_ptr,
    v_scale_ptr,
    table_ptr,
    context_len_ptr,
    sink_ptr,
    slope_ptr,
    out_ptr,
    partial_ptr,  # [S, H, places, D] float32: shares of a sequence's own, then of what it shares
    stats_ptr,  # [S, H, places, 2] float32: highest, total
    shared_ptr,  # [S / SHARED_ROWS] int32
    counter_ptr,  # [S * G] int32, zero before and after
    scale,
    softcap,
    window,
    most_splits,
    most_shares,
    q_stride,
    table_stride,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    SHARED: tl.constexpr,
    SHARED_ROWS: tl.constexpr,
    SHARED_BLOCK: tl.constexpr,
    MIN_CHUNK: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SINKS: tl.constexpr,
    ALIBI: tl.constexpr,
    FP8: tl.constexpr,
    PDL: tl.constexpr,
):
    inputs_ready(PDL)
    kv_head = tl.program_id(0)
    seq = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    context = tl.load(context_len_ptr + seq)
    if context == 0:  # padding, or a row that others compute
        return
    first = 0
    shares = 0
    if SHARED:
        first = tl.load(shared_ptr + seq // SHARED_ROWS)
        first = tl.where(first < context, first, 0)
        shares = tl.cdiv(first, tl.maximum(share_size(first, most_shares, SHARED_BLOCK), 1))
    elif WINDOW:
        first = tl.maximum(context - window, 0) // BLOCK_N * BLOCK_N
    splits = tl.minimum(tl.maximum(tl.cdiv(context - first, MIN_CHUNK), 1), most_splits)
    chunk = tl.cdiv(tl.cdiv(context - first, splits), BLOCK_N) * BLOCK_N
    splits = tl.maximum(tl.cdiv(context - first, tl.maximum(chunk, 1)), 1)
    if split >= splits:
        return
    group: tl.constexpr = HEADS // KV_HEADS
    at = tl.arange(0, BLOCK_D)
    row = tl.arange(0, BLOCK_M)
    head = kv_head * group + row
    q = tl.load(
        q_ptr + seq * q_stride + head[:, None] * D + at[None, :],
        mask=(row < group)[:, None] & (at < D)[None, :],
        other=0.0,
    )
    q, scale = ready(q, scale, FP8)
    slopes = tl.zeros([BLOCK_M], tl.float32)
    if ALIBI:
        slopes = tl.load(slope_ptr + head, mask=row < group, other=0.0).to(tl.float32)
    begin = first + split * chunk
    acc, total, highest = attend(
        tl.zeros([BLOCK_M, BLOCK_D], tl.float32),
        tl.zeros([BLOCK_M], tl.float32),
        tl.full([BLOCK_M], float("-inf"), tl.float32),
        q,
        tl.zeros([BLOCK_M], tl.int32) + context - 1,
        slopes,
        k_ptr,
        v_ptr,
        k_scale_ptr,
        v_scale_ptr,
        table_ptr + seq * table_stride,
        kv_head,
        begin,
        tl.minimum(begin + chunk, context),
        scale,
        softcap,
        window,
        KV_HEADS,
        D,
        BLOCK_D,
        BLOCK_N,
        PAGE,
        True,
        WINDOW,
        SOFTCAP,
        ALIBI,
        FP8,
    )
    places = most_splits + most_shares
    if splits > 1:
        place = (seq * HEADS + head) * places + split
        tl.store(
            partial_ptr + place[:, None] * D + at[None, :],
            acc,
            mask=(row < group)[:, None] & (at < D)[None, :],
        )
        tl.store(stats_ptr + place * 2, highest, mask=row < group)
        tl.store(stats_ptr + place * 2 + 1, total, mask=row < group)
        tl.debug_barrier()  # all of the program's stores come before its sign
        counter = counter_ptr + seq * KV_HEADS + kv_head
        if tl.atomic_add(counter, 1, sem="acq_rel") == splits - 1:
            tl.store(counter, 0)
            _merge(
                partial_ptr, stats_ptr, sink_ptr, out_ptr, seq, kv_head, splits, shares, most_splits, places,
                HEADS, group, D, SHARED, PARTS, BLOCK_G, BLOCK_D, SINKS,
            )  # fmt: skip
        return
    if SHARED:
        acc, total, highest = _join(
            acc, total, highest, partial_ptr, stats_ptr, (seq * HEADS + head) * places + most_splits, shares,
            row < group, D, 1, BLOCK_D,
        )  # fmt: skip
    result = finish(acc, total, highest, sink_ptr, head, row < group, SINKS)
    tl.store(
        out_ptr + (seq * HEADS + head[:, None]) * D + at[None, :],
        result.to(out_ptr.dtype.element_ty),
        mask=(row < group)[:, None] & (at < D)[None, :],
    )


@triton.jit
def _merge(
    partial_ptr,
    stats_ptr,
    sink_ptr,
    out_ptr,
    seq,
    kv_head,
    splits,
    shares,
    most_splits,
    places,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    SHARED: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SINKS: tl.constexpr,
):
    at = tl.arange(0, BLOCK_D)
    row = tl.arange(0, BLOCK_G)
    head = kv_head * GROUP + row
    mask = (row < GROUP)[:, None] & (at < D)[None, :]
    acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_G], tl.float32)
    highest = tl.full([BLOCK_G], float("-inf"), tl.float32)
    place = (seq * HEADS + head) * places
    acc, total, highest = _join(
        acc, total, highest, partial_ptr, stats_ptr, place, splits, row < GROUP, D, PARTS, BLOCK_D
    )
    if SHARED:
        acc, total, highest = _join(
            acc, total, highest, partial_ptr, stats_ptr, place + most_splits, shares, row < GROUP, D, PARTS, BLOCK_D
        )
    result = finish(acc, total, highest, sink_ptr, head, row < GROUP, SINKS)
    tl.store(out_ptr + (seq * HEADS + head[:, None]) * D + at[None, :], result.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _join(
    acc,  # [M, BLOCK_D] float32
    total,
    highest,
    partial_ptr,
    stats_ptr,
    first,  # [M]: the place of each row's first share
    shares,
    real,  # [M]
    D: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Add ``shares`` shares of the context, ``PARTS`` at a time, to what is there."""
    at = tl.arange(0, BLOCK_D)
    part = tl.arange(0, PARTS)
    for start in tl.range(0, shares, PARTS):
        place = first[:, None] + start + part[None, :]
        here = real[:, None] & (start + part < shares)[None, :]
        maxima = tl.load(stats_ptr + place * 2, mask=here, other=float("-inf"))
        totals = tl.load(stats_ptr + place * 2 + 1, mask=here, other=0.0)
        values = tl.load(
            partial_ptr + place[:, :, None] * D + at[None, None, :],
            mask=here[:, :, None] & (at < D)[None, None, :],
            other=0.0,
        )
        higher = tl.maximum(highest, tl.max(maxima, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        keep = tl.exp2(highest - base)
        weights = tl.exp2(maxima - base[:, None])
        total = total * keep + tl.sum(totals * weights, 1)
        acc = acc * keep[:, None] + tl.sum(values * weights[:, :, None], 1)
        highest = higher
    return acc, total, highest


def _tiles(row_bytes: int, page_size: int) -> tuple[int, int, int]:
    """BLOCK_N, warps and stages, by the bytes of a head's keys. (H100: 128 keys of 256 bytes, 3 to 8 % over 64.)"""
    if row_bytes <= 256:
        return 128 if page_size % 128 == 0 else 64, 4, 2
    return 32, 4, 3 if row_bytes <= 512 else 2


def split_count(sequences: int, kv_heads: int, processors: int) -> int:
    """Splits of a context, by batch size: about eight programs a multiprocessor, in powers of 2."""
    wanted = max(1, 8 * processors // max(1, sequences * kv_heads))
    return min(_MAX_SPLITS, 1 << (wanted - 1).bit_length())


def decode_attention(
    q: torch.Tensor,
    pages: TritonPages,
    step: AttentionStep,
    heads: int,
    kv_heads: int,
    head_dim: int,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
    counters: torch.Tensor,
    processors: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """``q [S, H * D]``: one query a sequence. ``counters``: ``MAX_COUNTERS`` int32 zeros, left zero.

    Rows whose context is 0 are left as they are in ``out`` (and so undefined without it).
    """
    sequences = q.shape[0]
    if out is None:
        out = torch.empty(sequences, heads * head_dim, dtype=q.dtype, device=q.device)
    splits = split_count(sequences, kv_heads, processors) if sequences * kv_heads <= MAX_COUNTERS else 1
    places = splits
    if step.shared is not None and window is None:
        places += shared_splits(sequences, kv_heads, processors)
    shape = (sequences, heads, places) if places > 1 else (0, 0, 0)
    partial = torch.empty(*shape, head_dim, dtype=torch.float32, device=q.device)
    stats = torch.empty(*shape, 2, dtype=torch.float32, device=q.device)
    block_d = max(16, triton.next_power_of_2(head_dim))
    group = triton.next_power_of_2(heads // kv_heads)
    block_n, warps, stages = _tiles(q.dtype.itemsize * block_d, pages.page_size)
    if places > splits:
        shared_attention(
            q, pages, step, heads, kv_heads, head_dim, scale, softcap, alibi_slopes, partial, stats, first=splits
        )
    launch(
        _decode,
        (kv_heads, sequences, splits),
        q,
        pages.k,
        pages.v,
        pages.k_scale,
        pages.v_scale,
        step.block_table,
        step.context_len,
        q if sinks is None else sinks,
        q if alibi_slopes is None else alibi_slopes,
        out,
        partial,
        stats,
        counters if step.shared is None else step.shared,
        counters,
        scale,
        softcap or 0.0,
        window or 0,
        splits,
        places - splits,
        q.stride(0),
        step.block_table.stride(0),
        HEADS=heads,
        KV_HEADS=kv_heads,
        D=head_dim,
        PAGE=pages.page_size,
        SHARED=places > splits,
        SHARED_ROWS=SHARED_ROWS,
        SHARED_BLOCK=shared_block(block_d),
        MIN_CHUNK=_MIN_CHUNK,
        PARTS=min(_MAX_SPLITS, max(1, 4096 // (group * block_d))),
        BLOCK_M=max(16, group),
        BLOCK_G=group,
        BLOCK_N=block_n,
        BLOCK_D=block_d,
        WINDOW=window is not None,
        SOFTCAP=softcap is not None,
        SINKS=sinks is not None,
        ALIBI=alibi_slopes is not None,
        FP8=pages.fp8,
        num_warps=warps,
        num_stages=stages,
    )
    return out
