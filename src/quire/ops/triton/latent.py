"""Latent attention (DeepSeek's, absorbed): all heads share one key, and what follows its rotated part is the value.

So a tile of heads and queries reads each row of the pages once, for scores and sums. Such rows are wide (576 numbers in
DeepSeek-V2 and V3), hence tiles of a shape of their own. Decode steps split contexts over programs; a second launch
merges the shares.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from quire.ops.backend import AttentionStep
from quire.ops.triton.attend import LOG2E, ready
from quire.ops.triton.launch import inputs_ready, launch
from quire.ops.triton.pages import TritonPages
from quire.ops.triton.search import owner_of

_MOST_SPLITS = 32
_MIN_CHUNK = 128


@triton.jit(do_not_specialize=["scale", "sequences", "most_splits"])
def _latent(
    q_ptr,  # [T, HEADS, ROTARY + RANK]
    k_ptr,
    k_scale_ptr,
    table_ptr,
    query_start_ptr,
    context_len_ptr,
    out_ptr,  # as q; the first ROTARY of each head are left as they are
    partial_ptr,  # [S, HEADS, most_splits, RANK] float32
    stats_ptr,  # [S, HEADS, most_splits, 2] float32: highest, total
    scale,
    sequences,
    most_splits,
    q_stride,
    table_stride,
    HEADS: tl.constexpr,
    ROTARY: tl.constexpr,
    RANK: tl.constexpr,
    PAGE: tl.constexpr,
    DECODE: tl.constexpr,
    SPLIT: tl.constexpr,
    MIN_CHUNK: tl.constexpr,
    TILE_HEADS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_ROTARY: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    FP8: tl.constexpr,
    PDL: tl.constexpr,
):
    inputs_ready(PDL)
    tile = tl.program_id(1)
    split = tl.program_id(2)
    if DECODE:
        seq = tile
        start = tile
        count = 1
        tile = 0
    else:
        seq = owner_of(tile, query_start_ptr, sequences, BLOCK_Q)
        start = tl.load(query_start_ptr + seq)
        count = tl.load(query_start_ptr + seq + 1) - start
        tile -= start // BLOCK_Q + seq
    context = tl.load(context_len_ptr + seq)
    if (tile < 0) | (tile * BLOCK_Q >= count) | (context == 0):
        return
    first = 0
    end = tl.minimum(context - count + tile * BLOCK_Q + BLOCK_Q, context)
    if SPLIT:
        splits, chunk = _shares(context, most_splits, MIN_CHUNK, BLOCK_N)
        if split >= splits:
            return
        first = split * chunk
        end = tl.minimum(first + chunk, context)
    D: tl.constexpr = ROTARY + RANK
    row = tl.arange(0, BLOCK_M)
    turned = tl.arange(0, BLOCK_ROTARY)
    at = ROTARY + tl.arange(0, BLOCK_RANK)
    token = tile * BLOCK_Q + row // TILE_HEADS
    head = tl.program_id(0) * TILE_HEADS + row % TILE_HEADS
    used = (row < BLOCK_Q * TILE_HEADS) & (token < count) & (head < HEADS)
    q_row = q_ptr + (start + token).to(tl.int64)[:, None] * q_stride + head[:, None] * D
    q_turned = tl.load(q_row + turned[None, :], mask=used[:, None] & (turned < ROTARY)[None, :], other=0.0)
    q = tl.load(q_row + at[None, :], mask=used[:, None] & (at < D)[None, :], other=0.0)
    q_turned, _ = ready(q_turned, scale, FP8)
    q, scale = ready(q, scale, FP8)
    query_pos = context - count + token
    table = table_ptr + seq.to(tl.int64) * table_stride
    acc = tl.zeros([BLOCK_M, BLOCK_RANK], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    offset = tl.arange(0, BLOCK_N)
    for begin in tl.range(first, end, BLOCK_N):
        pos = begin + offset
        inside = pos < end
        page = tl.load(table + pos // PAGE, mask=inside, other=0).to(tl.int64)
        rows = page * PAGE + pos % PAGE
        k_row = k_ptr + rows[:, None] * D
        k_turned = tl.load(k_row + turned[None, :], mask=inside[:, None] & (turned < ROTARY)[None, :], other=0.0)
        k = tl.load(k_row + at[None, :], mask=inside[:, None] & (at < D)[None, :], other=0.0).to(q.dtype)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        scores = tl.dot(q_turned, tl.trans(k_turned.to(q.dtype)), scores, input_precision="ieee") * (scale * LOG2E)
        if FP8:
            k_scales = tl.load(k_scale_ptr + rows, mask=inside, other=0.0)
            scores *= k_scales[None, :]
        seen = (query_pos[:, None] >= pos[None, :]) & inside[None, :]
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        p = tl.exp2(scores - base[:, None])
        keep = tl.exp2(highest - base)
        total = total * keep + tl.sum(p, 1)
        highest = higher
        if FP8:
            greatest = tl.maximum(tl.max(k_scales, 0), 1e-30)  # so that weights stay in float16's range
            p *= (k_scales / greatest)[None, :]
            acc = acc * keep[:, None] + greatest * tl.dot(p.to(q.dtype), k, input_precision="ieee")
        else:
            acc = tl.dot(p.to(q.dtype), k, acc * keep[:, None], input_precision="ieee")
    inner = at - ROTARY
    stored = used[:, None] & (inner < RANK)[None, :]
    if SPLIT:
        place = (seq.to(tl.int64) * HEADS + head) * most_splits + split
        tl.store(partial_ptr + place[:, None] * RANK + inner[None, :], acc, mask=stored)
        tl.store(stats_ptr + place * 2, highest, mask=used)
        tl.store(stats_ptr + place * 2 + 1, total, mask=used)
    else:
        out = ((start + token).to(tl.int64)[:, None] * HEADS + head[:, None]) * D + at[None, :]
        result = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        tl.store(out_ptr + out, result.to(out_ptr.dtype.element_ty), mask=stored)


@triton.jit
def _shares(context, most_splits, MIN_CHUNK: tl.constexpr, BLOCK_N: tl.constexpr):
    """How many programs share a context, and the tokens of each."""
    splits = tl.minimum(tl.cdiv(context, MIN_CHUNK), most_splits)
    chunk = tl.cdiv(tl.cdiv(context, splits), BLOCK_N) * BLOCK_N
    return tl.cdiv(context, chunk), chunk


@triton.jit(do_not_specialize=["most_splits"])
def _merge(
    partial_ptr,
    stats_ptr,
    context_len_ptr,
    out_ptr,
    most_splits,
    HEADS: tl.constexpr,
    ROTARY: tl.constexpr,
    RANK: tl.constexpr,
    MIN_CHUNK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    PDL: tl.constexpr,
):
    inputs_ready(PDL)
    head = tl.program_id(0)
    seq = tl.program_id(1).to(tl.int64)
    context = tl.load(context_len_ptr + seq)
    if context == 0:
        return
    splits, _ = _shares(context, most_splits, MIN_CHUNK, BLOCK_N)
    at = tl.arange(0, BLOCK_RANK)
    place = (seq * HEADS + head) * most_splits
    acc = tl.zeros([BLOCK_RANK], tl.float32)
    total = 0.0
    highest = float("-inf")
    for split in tl.range(0, splits):
        share = tl.load(stats_ptr + (place + split) * 2)
        higher = tl.maximum(highest, share)
        keep, weight = tl.exp2(highest - higher), tl.exp2(share - higher)
        values = tl.load(partial_ptr + (place + split) * RANK + at, mask=at < RANK, other=0.0)
        acc = acc * keep + values * weight
        total = total * keep + tl.load(stats_ptr + (place + split) * 2 + 1) * weight
        highest = higher
    out = (seq * HEADS + head) * (ROTARY + RANK) + ROTARY + at
    tl.store(out_ptr + out, (acc / total).to(out_ptr.dtype.element_ty), mask=at < RANK)


def latent_attention(
    q: torch.Tensor,
    pages: TritonPages,
    step: AttentionStep,
    heads: int,
    scale: float,
    processors: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """``q [T, heads * (rotary + rank)]`` over pages whose values are their keys; see ``Ops.new_pages``.

    Rows whose context is 0, or without a sequence, are left as they are in ``out``.
    """
    rotary = pages.values_from or 0
    width = pages.k.shape[3]
    rank, tokens, sequences = width - rotary, len(q), len(step.context_len)
    decode = step.max_query == 1
    if out is None:
        out = torch.empty_like(q)
    narrow = q.dtype.itemsize == 2
    tile_heads = min(heads, 64 if narrow else 16)
    block_m = max(16, triton.next_power_of_2(tile_heads)) if decode else 64 if narrow else 16
    block_q = 1 if decode else max(1, block_m // tile_heads)
    block_n = 32 if narrow else 16
    head_tiles = triton.cdiv(heads, tile_heads)
    splits = 1
    if decode:
        wanted = max(1, 2 * processors // max(1, sequences * head_tiles))
        splits = min(_MOST_SPLITS, 1 << (wanted - 1).bit_length())
    shape = (sequences, heads, splits) if splits > 1 else (0, 0, 0)
    partial = torch.empty(*shape, rank, dtype=torch.float32, device=q.device)
    stats = torch.empty(*shape, 2, dtype=torch.float32, device=q.device)
    sizes = {"HEADS": heads, "ROTARY": rotary, "RANK": rank, "MIN_CHUNK": _MIN_CHUNK, "BLOCK_N": block_n}
    sizes["BLOCK_RANK"] = max(16, triton.next_power_of_2(rank))
    launch(
        _latent,
        (head_tiles, sequences if decode else tokens // block_q + sequences, splits),
        q,
        pages.k,
        pages.k_scale,
        step.block_table,
        step.query_start,
        step.context_len,
        out,
        partial,
        stats,
        scale,
        sequences,
        splits,
        q.stride(0),
        step.block_table.stride(0),
        PAGE=pages.page_size,
        DECODE=decode,
        SPLIT=splits > 1,
        TILE_HEADS=tile_heads,
        BLOCK_Q=block_q,
        BLOCK_M=block_m,
        BLOCK_ROTARY=max(16, triton.next_power_of_2(rotary)),
        FP8=pages.fp8,
        num_warps=8 if block_m * sizes["BLOCK_RANK"] > 16384 else 4,
        num_stages=2,
        **sizes,
    )
    if splits > 1:
        launch(_merge, (heads, sequences), partial, stats, step.context_len, out, splits, **sizes)
    return out
