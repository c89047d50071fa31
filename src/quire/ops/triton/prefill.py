"""Attention of any number of queries a sequence over its pages, where FlashAttention-4 is absent or can't.

A tile holds the queries of all heads of a group for some tokens of one sequence. Lengths are on the device alone, so
the grid is an upper bound: sequence s owns the tiles from ``query_start[s] // BLOCK_Q + s``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from quire.ops.backend import AttentionStep
from quire.ops.triton.attend import attend, finish, ready
from quire.ops.triton.launch import inputs_ready, launch
from quire.ops.triton.pages import TritonPages
from quire.ops.triton.search import owner_of


@triton.jit(do_not_specialize=["scale", "softcap", "window", "sequences"])
def _prefill(
    q_ptr,
    k_ptr,
    v_ptr,
    k_scale_ptr,
    v_scale_ptr,
    table_ptr,
    query_start_ptr,
    context_len_ptr,
    sink_ptr,
    slope_ptr,
    out_ptr,
    scale,
    softcap,
    window,
    sequences,
    q_stride,
    table_stride,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_M: tl.constexpr,
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
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # a sequence's last tiles see most keys: they start first
    kv_head = tl.program_id(1)
    seq = owner_of(tile, query_start_ptr, sequences, BLOCK_Q)
    start = tl.load(query_start_ptr + seq)
    count = tl.load(query_start_ptr + seq + 1) - start
    tile -= start // BLOCK_Q + seq
    if (tile < 0) | (tile * BLOCK_Q >= count):  # the first sequence with queries may not start at token 0
        return
    context = tl.load(context_len_ptr + seq)
    group: tl.constexpr = HEADS // KV_HEADS
    row = tl.arange(0, BLOCK_M)
    at = tl.arange(0, BLOCK_D)
    token = tile * BLOCK_Q + row // group
    head = kv_head * group + row % group
    used = (row < BLOCK_Q * group) & (token < count)
    mask = used[:, None] & (at < D)[None, :]
    address = (start + token).to(tl.int64)
    q = tl.load(q_ptr + address[:, None] * q_stride + head[:, None] * D + at[None, :], mask=mask, other=0.0)
    q, scale = ready(q, scale, FP8)
    slopes = tl.zeros([BLOCK_M], tl.float32)
    if ALIBI:
        slopes = tl.load(slope_ptr + head, mask=used, other=0.0).to(tl.float32)
    query_pos = context - count + token
    lowest = context - count + tile * BLOCK_Q
    end = tl.minimum(lowest + BLOCK_Q, context)
    first = 0
    whole = (lowest + 1) // BLOCK_N * BLOCK_N  # up to here every query sees every key, but for a window
    if WINDOW:
        first = tl.maximum(lowest - window + 1, 0) // BLOCK_N * BLOCK_N
        whole = first
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    table = table_ptr + seq.to(tl.int64) * table_stride
    if not WINDOW:
        acc, total, highest = attend(
            acc, total, highest, q, query_pos, slopes, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, table, kv_head,
            first, whole, scale, softcap, window,
            KV_HEADS, D, BLOCK_D, BLOCK_N, PAGE, False, WINDOW, SOFTCAP, ALIBI, FP8,
        )  # fmt: skip
    acc, total, highest = attend(
        acc, total, highest, q, query_pos, slopes, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, table, kv_head,
        whole, end, scale, softcap, window,
        KV_HEADS, D, BLOCK_D, BLOCK_N, PAGE, True, WINDOW, SOFTCAP, ALIBI, FP8,
    )  # fmt: skip
    result = finish(acc, total, highest, sink_ptr, head, used, SINKS)
    tl.store(
        out_ptr + (address[:, None] * HEADS + head[:, None]) * D + at[None, :],
        result.to(out_ptr.dtype.element_ty),
        mask=mask,
    )


def _tiles(row_bytes: int, item_bytes: int) -> tuple[int, int, int, int]:
    """BLOCK_M, BLOCK_N, warps and stages, by the bytes of a head's keys."""
    if row_bytes <= 256 and item_bytes == 2:
        return 128, 64, 4, 2
    return (128, 32, 8, 2) if item_bytes == 2 else (32, 32, 4, 2)  # float32 has no tensor cores: compiles for long


def prefill_attention(
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
) -> torch.Tensor:
    """``q [T, H * D]``, sequence s at rows ``query_start[s]`` to ``query_start[s + 1]``."""
    tokens, sequences = q.shape[0], len(step.context_len)
    out = torch.empty(tokens, heads * head_dim, dtype=q.dtype, device=q.device)
    block_d = max(16, triton.next_power_of_2(head_dim))
    group = heads // kv_heads
    block_m, block_n, warps, stages = _tiles(q.dtype.itemsize * block_d, q.dtype.itemsize)
    block_m = max(block_m, triton.next_power_of_2(group))
    block_q = block_m // group
    launch(
        _prefill,
        (tokens // block_q + sequences, kv_heads),
        q,
        pages.k,
        pages.v,
        pages.k_scale,
        pages.v_scale,
        step.block_table,
        step.query_start,
        step.context_len,
        q if sinks is None else sinks,
        q if alibi_slopes is None else alibi_slopes,
        out,
        scale,
        softcap or 0.0,
        window or 0,
        sequences,
        q.stride(0),
        step.block_table.stride(0),
        HEADS=heads,
        KV_HEADS=kv_heads,
        D=head_dim,
        PAGE=pages.page_size,
        BLOCK_Q=block_q,
        BLOCK_M=block_m,
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
