"""The gated delta rule and the convolution before it, for a step's sequences of any length, without the host.

Each program carries a part of one head's state through the tokens of one sequence, in registers (as in flash-linear-
attention's recurrent kernels), and leaves it in each page that it passes. Where the states lie is in ``position`` of
the pages; all kernels of a step read it, and the last one writes it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from quire.ops.backend import AttentionStep, DeltaWeights
from quire.ops.shapes import DeltaShape
from quire.ops.states import StatePages
from quire.ops.triton.launch import inputs_ready, launch
from quire.ops.triton.search import owner_of


@triton.jit
def _span(seq, query_start_ptr, context_len_ptr, DECODE: tl.constexpr):
    """The first row, the position of the first token and the number of tokens of a sequence."""
    context = tl.load(context_len_ptr + seq)
    if DECODE:
        start = seq.to(tl.int32)
        count = tl.minimum(context, 1)
    else:
        start = tl.load(query_start_ptr + seq)
        count = tl.minimum(tl.load(query_start_ptr + seq + 1) - start, context)
    return start, context - count, count


@triton.jit
def _source(begin, table_ptr, position_ptr, PAGE: tl.constexpr):
    """The place (two to a page) of the state after token ``begin - 1``, whether it is not there, and the next place."""
    before = begin - 1
    page = tl.load(table_ptr + tl.maximum(before, 0) // PAGE).to(tl.int64)
    second = (tl.load(position_ptr + page * 2) != before).to(tl.int64)
    missing = tl.load(position_ptr + page * 2 + second) != before
    target = tl.where(begin % PAGE == 0, 0, 1 - second)
    return page * 2 + second, missing, target


@triton.jit
def _convolve(
    x_ptr,
    kernel_ptr,
    inputs_ptr,  # [pages, 2, C, KERNEL - 1] float32
    position_ptr,
    table_ptr,
    query_start_ptr,
    context_len_ptr,
    out_ptr,  # [T, C] float32
    sequences,
    x_stride,
    table_stride,
    C: tl.constexpr,
    KERNEL: tl.constexpr,
    PAGE: tl.constexpr,
    DECODE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PDL: tl.constexpr,
):
    inputs_ready(PDL)
    tile = tl.program_id(1)
    seq = tile if DECODE else owner_of(tile, query_start_ptr, sequences, BLOCK_Q)
    start, begin, count = _span(seq, query_start_ptr, context_len_ptr, DECODE)
    first = 0
    if not DECODE:
        first = (tile - start // BLOCK_Q - seq) * BLOCK_Q
    if (first < 0) | (first >= count):
        return
    table = table_ptr + seq.to(tl.int64) * table_stride
    source, missing, target = _source(begin, table, position_ptr, PAGE)
    token = first + tl.arange(0, BLOCK_Q)
    here = token < count
    position = begin + token
    index = position // PAGE
    page = tl.load(table + index, mask=here, other=0).to(tl.int64)
    place = page * 2 + tl.where(index == begin // PAGE, target, 0)
    last = here & ((token == count - 1) | (position % PAGE == PAGE - 1))
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = c < C
    acc = tl.zeros([BLOCK_Q, BLOCK_C], tl.float32)
    for j in tl.static_range(KERNEL):
        at = token + j - (KERNEL - 1)
        row = (start + at).to(tl.int64)
        x = tl.load(
            x_ptr + row[:, None] * x_stride + c[None, :], mask=(here & (at >= 0))[:, None] & real[None, :], other=0.0
        ).to(tl.float32)
        older = here & (at < 0) & (begin > 0)
        kept = (source * C + c[None, :]) * (KERNEL - 1) + (KERNEL - 1 + at)[:, None]
        kept = tl.load(inputs_ptr + kept, mask=older[:, None] & real[None, :], other=0.0)
        x += tl.where(older[:, None] & missing, float("nan"), kept)
        acc += x * tl.load(kernel_ptr + c * KERNEL + j, mask=real, other=0.0)[None, :]
        if j > 0:
            target_at = (place[:, None] * C + c[None, :]) * (KERNEL - 1) + (j - 1)
            tl.store(inputs_ptr + target_at, x, mask=last[:, None] & real[None, :])
    rows = (start + token).to(tl.int64)[:, None] * C + c[None, :]
    tl.store(out_ptr + rows, acc * tl.sigmoid(acc), mask=here[:, None] & real[None, :])


@triton.jit
def _rule(
    mixed_ptr,  # [T, C] float32, convolved: queries, keys, values
    beta_ptr,
    decay_ptr,
    rate_ptr,
    bias_ptr,
    state_ptr,  # [pages, 2, HEADS, K, V] float32
    position_ptr,
    table_ptr,
    query_start_ptr,
    context_len_ptr,
    out_ptr,  # [T, HEADS, V] float32
    scale,
    beta_stride,
    decay_stride,
    table_stride,
    KEY_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    PAGE: tl.constexpr,
    DECODE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PDL: tl.constexpr,
):
    inputs_ready(PDL)
    head = tl.program_id(1)
    seq = tl.program_id(2)
    start, begin, count = _span(seq, query_start_ptr, context_len_ptr, DECODE)
    if count <= 0:
        return
    table = table_ptr + seq.to(tl.int64) * table_stride
    source, missing, target = _source(begin, table, position_ptr, PAGE)
    k_at = tl.arange(0, BLOCK_K)
    v_at = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    in_k, in_v = k_at < K, v_at < V
    inside = in_k[:, None] & in_v[None, :]
    at = k_at[:, None] * V + v_at[None, :]
    state = tl.load(state_ptr + (source * HEADS + head) * (K * V) + at, mask=inside & (begin > 0), other=0.0)
    state = tl.where((begin > 0) & missing, float("nan"), state)
    channels: tl.constexpr = 2 * KEY_HEADS * K + HEADS * V
    key_head = head // (HEADS // KEY_HEADS)
    rate = tl.load(rate_ptr + head)
    bias = tl.load(bias_ptr + head)
    for t in tl.range(0, count):
        row = (start + t).to(tl.int64)
        x = mixed_ptr + row * channels
        q = tl.load(x + key_head * K + k_at, mask=in_k, other=0.0)
        k = tl.load(x + (KEY_HEADS + key_head) * K + k_at, mask=in_k, other=0.0)
        v = tl.load(x + 2 * KEY_HEADS * K + head * V + v_at, mask=in_v, other=0.0)
        beta = tl.sigmoid(tl.load(beta_ptr + row * beta_stride + head).to(tl.float32))
        d = tl.load(decay_ptr + row * decay_stride + head).to(tl.float32) + bias
        softplus = tl.where(d > 20.0, d, tl.log(1.0 + tl.exp(tl.minimum(d, 20.0))))
        q *= tl.rsqrt(tl.sum(q * q, 0) + 1e-6) * scale
        k *= tl.rsqrt(tl.sum(k * k, 0) + 1e-6)
        state *= tl.exp(rate * softplus)
        error = (v - tl.sum(state * k[:, None], 0)) * beta
        state += k[:, None] * error[None, :]
        tl.store(out_ptr + (row * HEADS + head) * V + v_at, tl.sum(state * q[:, None], 0), mask=in_v)
        position = begin + t
        if (t == count - 1) | (position % PAGE == PAGE - 1):
            index = position // PAGE
            page = tl.load(table + index).to(tl.int64)
            place = page * 2 + tl.where(index == begin // PAGE, target, 0)
            tl.store(state_ptr + (place * HEADS + head) * (K * V) + at, state, mask=inside)


@triton.jit
def _mark(
    position_ptr,
    table_ptr,
    query_start_ptr,
    context_len_ptr,
    table_stride,
    PAGE: tl.constexpr,
    DECODE: tl.constexpr,
    PDL: tl.constexpr,
):
    """Note after which tokens the states are that the step has left."""
    inputs_ready(PDL)
    seq = tl.program_id(0)
    _, begin, count = _span(seq, query_start_ptr, context_len_ptr, DECODE)
    if count <= 0:
        return
    table = table_ptr + seq.to(tl.int64) * table_stride
    _, _, target = _source(begin, table, position_ptr, PAGE)
    end = begin + count
    first = begin // PAGE
    for index in tl.range(first, (end - 1) // PAGE + 1):
        page = tl.load(table + index).to(tl.int64)
        last = tl.minimum(end, (index + 1) * PAGE) - 1
        if (index > first) | (begin % PAGE == 0):
            tl.store(position_ptr + page * 2 + 1, -1)  # whatever an earlier sequence left there
            tl.store(position_ptr + page * 2, last.to(tl.int64))
        else:
            tl.store(position_ptr + page * 2 + target, last.to(tl.int64))


def gated_delta(
    mixed: torch.Tensor,
    beta: torch.Tensor,
    decay: torch.Tensor,
    weights: DeltaWeights,
    shape: DeltaShape,
    pages: StatePages,
    step: AttentionStep,
) -> torch.Tensor:
    """As ``Ops.gated_delta``; the rows of ``mixed``, ``beta`` and ``decay`` may lie apart."""
    tokens, sequences, channels = len(mixed), len(step.context_len), shape.channels
    decode = step.max_query == 1
    heads, value_dim = shape.value_heads, shape.value_dim
    convolved = torch.empty(tokens, channels, device=mixed.device)
    out = torch.empty(tokens, heads * value_dim, device=mixed.device)
    block_q = 1 if decode else 16
    block_c = min(256 if decode else 128, triton.next_power_of_2(channels))
    block_v = min(8, triton.next_power_of_2(value_dim))
    where = (step.block_table, step.query_start, step.context_len)
    table_stride = step.block_table.stride(0)
    common = {"PAGE": step.page_size, "DECODE": decode}
    launch(
        _convolve,
        (triton.cdiv(channels, block_c), tokens if decode else tokens // block_q + sequences),
        mixed,
        weights.kernel,
        pages.k,
        pages.position,
        *where,
        convolved,
        sequences,
        mixed.stride(0),
        table_stride,
        C=channels,
        KERNEL=shape.kernel,
        BLOCK_Q=block_q,
        BLOCK_C=block_c,
        **common,
    )
    launch(
        _rule,
        (triton.cdiv(value_dim, block_v), heads, sequences),
        convolved,
        beta,
        decay,
        weights.decay,
        weights.decay_bias,
        pages.v,
        pages.position,
        *where,
        out,
        shape.key_dim**-0.5,
        beta.stride(0),
        decay.stride(0),
        table_stride,
        KEY_HEADS=shape.key_heads,
        HEADS=heads,
        K=shape.key_dim,
        V=value_dim,
        BLOCK_K=triton.next_power_of_2(shape.key_dim),
        BLOCK_V=block_v,
        num_warps=1,
        **common,
    )
    launch(_mark, (sequences,), pages.position, *where, table_stride, num_warps=1, **common)
    return out
