"""Attention of many sequences over the pages they all begin with, which are then read once for all of them.

A block of ``SHARED_ROWS`` rows of a decode step is one tile of queries. Its results are shares of a split context like
those of ``decode``, which attends to what is left of each context and merges all shares (cascade attention, Ye et al.,
2024).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from quire.ops.backend import SHARED_ROWS, AttentionStep
from quire.ops.triton.attend import attend, ready
from quire.ops.triton.launch import inputs_ready, launch
from quire.ops.triton.pages import TritonPages


@triton.jit(do_not_specialize=["sequences", "scale", "softcap", "first", "places"])
def _shared(
    q_ptr,
    k_ptr,
    v_ptr,
    k_scale_ptr,
    v_scale_ptr,
    table_ptr,
    context_len_ptr,
    shared_ptr,
    slope_ptr,
    partial_ptr,  # [S, H, places, D] float32
    stats_ptr,  # [S, H, places, 2] float32
    sequences,
    scale,
    softcap,
    first,  # the place of the first share
    places,
    q_stride,
    table_stride,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr,
    FP8: tl.constexpr,
    PDL: tl.constexpr,
):
    inputs_ready(PDL)
    kv_head = tl.program_id(0)
    block = tl.program_id(1)
    split = tl.program_id(2)
    shared = tl.load(shared_ptr + block)
    chunk = share_size(shared, places - first, BLOCK_N)
    begin = split * chunk
    if begin >= shared:
        return
    group: tl.constexpr = HEADS // KV_HEADS
    at = tl.arange(0, BLOCK_D)
    row = tl.arange(0, ROWS * BLOCK_G)
    seq = (block * ROWS + row // BLOCK_G).to(tl.int64)
    head = kv_head * group + row % BLOCK_G
    real = (seq < sequences) & (row % BLOCK_G < group)
    mask = real[:, None] & (at < D)[None, :]
    q = tl.load(q_ptr + seq[:, None] * q_stride + head[:, None] * D + at[None, :], mask=mask, other=0.0)
    q, scale = ready(q, scale, FP8)
    slopes = tl.zeros([ROWS * BLOCK_G], tl.float32)
    position = tl.zeros([ROWS * BLOCK_G], tl.int32)
    if ALIBI:
        slopes = tl.load(slope_ptr + head, mask=real, other=0.0).to(tl.float32)
        position = tl.load(context_len_ptr + seq, mask=real, other=1) - 1
    acc, total, highest = attend(
        tl.zeros([ROWS * BLOCK_G, BLOCK_D], tl.float32),
        tl.zeros([ROWS * BLOCK_G], tl.float32),
        tl.full([ROWS * BLOCK_G], float("-inf"), tl.float32),
        q,
        position,
        slopes,
        k_ptr,
        v_ptr,
        k_scale_ptr,
        v_scale_ptr,
        table_ptr + (block * ROWS).to(tl.int64) * table_stride,
        kv_head,
        begin,
        tl.minimum(begin + chunk, shared),
        scale,
        softcap,
        0,
        KV_HEADS,
        D,
        BLOCK_D,
        BLOCK_N,
        PAGE,
        False,
        False,
        SOFTCAP,
        ALIBI,
        FP8,
    )
    place = (seq * HEADS + head) * places + first + split
    tl.store(partial_ptr + place[:, None] * D + at[None, :], acc, mask=mask)
    tl.store(stats_ptr + place * 2, highest, mask=real)
    tl.store(stats_ptr + place * 2 + 1, total, mask=real)


@triton.jit
def share_size(tokens, splits, BLOCK_N: tl.constexpr):
    """Tokens of each share when ``tokens`` are split into at most ``splits``."""
    return tl.cdiv(tl.cdiv(tokens, splits), BLOCK_N) * BLOCK_N


def shared_block(block_d: int) -> int:
    """Keys taken at a time."""
    return 64 if block_d <= 128 else 32


def shared_splits(sequences: int, kv_heads: int, processors: int) -> int:
    """Shares of the common context: about a program a multiprocessor, and few, since each is written and read."""
    programs = triton.cdiv(sequences, SHARED_ROWS) * kv_heads
    return min(8, max(1, 1 << (processors // programs).bit_length() - 1)) if programs <= processors else 1


def shared_attention(
    q: torch.Tensor,
    pages: TritonPages,
    step: AttentionStep,
    heads: int,
    kv_heads: int,
    head_dim: int,
    scale: float,
    softcap: float | None,
    alibi_slopes: torch.Tensor | None,
    partial: torch.Tensor,
    stats: torch.Tensor,
    first: int,
) -> None:
    """Fill the shares from place ``first`` of ``partial [S, H, places, D]`` and ``stats [S, H, places, 2]``."""
    sequences, places = q.shape[0], partial.shape[2]
    block_g = triton.next_power_of_2(heads // kv_heads)
    block_d = max(16, triton.next_power_of_2(head_dim))
    launch(
        _shared,
        (kv_heads, triton.cdiv(sequences, SHARED_ROWS), places - first),
        q,
        pages.k,
        pages.v,
        pages.k_scale,
        pages.v_scale,
        step.block_table,
        step.context_len,
        step.shared,
        q if alibi_slopes is None else alibi_slopes,
        partial,
        stats,
        sequences,
        scale,
        softcap or 0.0,
        first,
        places,
        q.stride(0),
        step.block_table.stride(0),
        HEADS=heads,
        KV_HEADS=kv_heads,
        D=head_dim,
        PAGE=pages.page_size,
        ROWS=SHARED_ROWS,
        BLOCK_G=block_g,
        BLOCK_N=shared_block(block_d),
        BLOCK_D=block_d,
        SOFTCAP=softcap is not None,
        ALIBI=alibi_slopes is not None,
        FP8=pages.fp8,
        num_warps=8 if SHARED_ROWS * block_g >= 128 else 4,
        num_stages=2,
    )
