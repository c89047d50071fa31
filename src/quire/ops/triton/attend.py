"""What the attention kernels share: a tile of queries walks a range of keys in pages, with a running softmax."""

from __future__ import annotations

import triton
import triton.language as tl

from quire.ops.triton.maths import tanh

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def attend(
    acc,  # [M, BLOCK_D] float32, relative to 2 ** highest
    total,  # [M] float32, likewise
    highest,  # [M] float32: the greatest score so far, in powers of 2
    q,  # [M, BLOCK_D]
    query_pos,  # [M] int32
    slopes,  # [M] float32, or nothing
    k_ptr,
    v_ptr,
    k_scale_ptr,
    v_scale_ptr,
    table_ptr,  # the sequence's row of the block table
    kv_head,
    first,  # a multiple of BLOCK_N
    end,
    scale,
    softcap,
    window,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PAGE: tl.constexpr,
    MASKED: tl.constexpr,  # whether a query may not see all keys of the range
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr,
    FP8: tl.constexpr,
):
    at = tl.arange(0, BLOCK_D)
    offset = tl.arange(0, BLOCK_N)
    for start in tl.range(first, end, BLOCK_N):
        pos = start + offset
        inside = pos < end
        if PAGE % BLOCK_N == 0:
            page = tl.load(table_ptr + start // PAGE).to(tl.int64)
            place = start % PAGE + offset
        else:
            page = tl.load(table_ptr + pos // PAGE, mask=inside, other=0).to(tl.int64)
            place = pos % PAGE
        rows = (page * PAGE + place) * KV_HEADS + kv_head
        scales = (page * KV_HEADS + kv_head) * PAGE + place
        loaded = (inside[:, None] & (at < D)[None, :]) if MASKED else (at < D)[None, :]
        k = tl.load(k_ptr + rows[:, None] * D + at[None, :], mask=loaded, other=0.0).to(q.dtype)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if FP8:
            scores *= tl.load(k_scale_ptr + scales, mask=inside, other=0.0)[None, :]
        if SOFTCAP:
            scores = softcap * tanh(scores / softcap)
        distance = query_pos[:, None] - pos[None, :]
        if ALIBI:
            scores -= slopes[:, None] * distance.to(tl.float32)
        scores *= LOG2E
        if MASKED:
            seen = (distance >= 0) & inside[None, :]
            if WINDOW:
                seen = seen & (distance < window)
            scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)  # a row that has seen no key yet
        p = tl.exp2(scores - base[:, None])
        keep = tl.exp2(highest - base)
        total = total * keep + tl.sum(p, 1)
        highest = higher
        v = tl.load(v_ptr + rows[:, None] * D + at[None, :], mask=loaded, other=0.0).to(q.dtype)
        if FP8:
            v_scales = tl.load(v_scale_ptr + scales, mask=inside, other=0.0)
            greatest = tl.maximum(tl.max(v_scales, 0), 1e-30)  # so that weights stay in float16's range
            p *= (v_scales / greatest)[None, :]
            acc = acc * keep[:, None] + greatest * tl.dot(p.to(q.dtype), v, input_precision="ieee")
        else:
            acc = tl.dot(p.to(q.dtype), v, acc * keep[:, None], input_precision="ieee")
    return acc, total, highest


@triton.jit
def ready(q, scale, FP8: tl.constexpr):
    """Queries as the products with keys want them, and the scale left to apply.

    Hopper turns e4m3 into float16 in one instruction and into bfloat16 in many, so fp8 pages are read in float16;
    queries that are scaled before are within its range.
    """
    if FP8:
        return (q.to(tl.float32) * scale).to(tl.float16), 1.0
    else:
        return q, scale


@triton.jit
def finish(acc, total, highest, sink_ptr, heads, mask, SINKS: tl.constexpr):
    """The softmax's quotient ``[M, BLOCK_D]``; a sink adds to the sum alone. 0 where no key was seen."""
    if SINKS:
        sink = tl.load(sink_ptr + heads, mask=mask, other=float("-inf")).to(tl.float32) * LOG2E
        higher = tl.maximum(highest, sink)
        base = tl.where(higher == float("-inf"), 0.0, higher)
        keep = tl.exp2(highest - base)
        total = total * keep + tl.exp2(sink - base)
        acc = acc * keep[:, None]
    return acc / tl.where(total == 0.0, 1.0, total)[:, None]
