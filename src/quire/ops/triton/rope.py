"""Between the projections and attention: norms of q and k, rotary embedding, writing k and v to their pages."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from quire.ops.backend import AttentionStep
from quire.ops.triton.launch import inputs_ready, launch
from quire.ops.triton.pages import TritonPages

_E4M3_MAX = tl.constexpr(448.0)


@triton.jit
def _write(
    page_ptr,
    scale_ptr,
    x,
    slot,
    head,
    mask,
    at,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    FP8: tl.constexpr,
):
    """``x [heads, D]`` to a slot of the pages, each head with a scale of its own in fp8."""
    if FP8:
        scale = tl.maximum(tl.max(tl.abs(x), 1) / _E4M3_MAX, 1e-12)
        tl.store(scale_ptr + (slot // PAGE * KV_HEADS + head) * PAGE + slot % PAGE, scale, mask=mask)
        stored = (x / scale[:, None]).to(page_ptr.dtype.element_ty, fp_downcast_rounding="rtne")
    else:
        stored = x.to(page_ptr.dtype.element_ty)
    rows = slot * KV_HEADS + head
    tl.store(page_ptr + rows[:, None] * D + at[None, :], stored, mask=mask[:, None] & (at < D)[None, :])


@triton.jit(do_not_specialize=["eps"])
def _qk_norm_rope_store(
    qkv_ptr,
    q_ptr,
    q_norm_ptr,
    k_norm_ptr,
    cos_sin_ptr,
    positions_ptr,
    slots_ptr,
    k_ptr,
    v_ptr,
    k_scale_ptr,
    v_scale_ptr,
    eps,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    ROTARY: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    NORM: tl.constexpr,
    VALUES: tl.constexpr,
    PAGE: tl.constexpr,
    FP8: tl.constexpr,
    LIMIT: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PDL: tl.constexpr,
):
    inputs_ready(PDL)
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    at = tl.arange(0, BLOCK_D)
    all_heads: tl.constexpr = HEADS + 2 * KV_HEADS
    here = (head[:, None] < all_heads) & (at[None, :] < D)
    base = qkv_ptr + (token * all_heads + head[:, None]) * D
    is_q = head < HEADS
    is_v = head >= HEADS + KV_HEADS
    x = tl.load(base + at[None, :], mask=here, other=0.0).to(tl.float32)
    # A page outlives its sequence, and what FlashAttention-4 masks it still multiplies by 0. A broken row's keys stay
    # NaN, so that whoever sees them is found out.
    raw = tl.minimum(tl.maximum(tl.where(x != x, 0.0, x), -LIMIT), LIMIT)
    if ROTARY > 0:
        half: tl.constexpr = ROTARY // 2
        if INTERLEAVED:
            mate = at ^ 1
            frequency = at // 2
            first = at % 2 == 0
        else:
            first = at < half
            mate = tl.where(first, at + half, at - half)
            frequency = tl.where(first, at, at - half)
        turned = at < ROTARY
        mate = tl.where(turned, mate, at)
        y = tl.load(base + mate[None, :], mask=here, other=0.0).to(tl.float32)
    if NORM:
        factor = tl.rsqrt(tl.sum(x * x, 1) / D + eps)[:, None]
        q_weight = tl.load(q_norm_ptr + at, mask=at < D, other=0.0).to(tl.float32)
        k_weight = tl.load(k_norm_ptr + at, mask=at < D, other=0.0).to(tl.float32)
        x = x * factor * tl.where(is_q[:, None], q_weight[None, :], k_weight[None, :])
        if ROTARY > 0:
            q_weight = tl.load(q_norm_ptr + mate, mask=at < D, other=0.0).to(tl.float32)
            k_weight = tl.load(k_norm_ptr + mate, mask=at < D, other=0.0).to(tl.float32)
            y = y * factor * tl.where(is_q[:, None], q_weight[None, :], k_weight[None, :])
    if ROTARY > 0:
        table = cos_sin_ptr + tl.load(positions_ptr + token).to(tl.int64) * ROTARY
        cos = tl.load(table + frequency, mask=turned, other=1.0).to(tl.float32)
        sin = tl.load(table + half + frequency, mask=turned, other=0.0).to(tl.float32)
        sin = tl.where(first, -sin, sin)
        x = x * cos[None, :] + y * sin[None, :]
    tl.store(
        q_ptr + (token * HEADS + head[:, None]) * D + at[None, :],
        x.to(q_ptr.dtype.element_ty),
        mask=here & is_q[:, None],
    )
    slot = tl.load(slots_ptr + token).to(tl.int64)
    stored = slot >= 0  # a padding row of a graph has none
    is_k = (head >= HEADS) & (head < HEADS + KV_HEADS)
    _write(k_ptr, k_scale_ptr, x, slot, head - HEADS, is_k & stored, at, KV_HEADS, D, PAGE, FP8)
    if VALUES:
        is_v &= head < all_heads
        _write(v_ptr, v_scale_ptr, raw, slot, head - HEADS - KV_HEADS, is_v & stored, at, KV_HEADS, D, PAGE, FP8)


def qk_norm_rope_store(
    qkv: torch.Tensor,
    heads: int,
    kv_heads: int,
    head_dim: int,
    q_norm: torch.Tensor | None,
    k_norm: torch.Tensor | None,
    eps: float,
    cos_sin: torch.Tensor | None,
    interleaved: bool,
    pages: TritonPages,
    step: AttentionStep,
) -> torch.Tensor:
    """As ``Ops.qk_norm_rope_store``; rows whose slot is negative write no keys and values."""
    qkv = qkv.contiguous()
    tokens = qkv.shape[0]
    q = torch.empty(tokens, heads * head_dim, dtype=qkv.dtype, device=qkv.device)
    if (q_norm is None) != (k_norm is None):
        raise ValueError("qk_norm_rope_store: q_norm and k_norm come together or not at all.")
    block_d = triton.next_power_of_2(head_dim)
    all_heads = heads + 2 * kv_heads
    block_heads = max(1, min(triton.next_power_of_2(all_heads), 1024 // block_d))
    if tokens:
        launch(
            _qk_norm_rope_store,
            (tokens, triton.cdiv(all_heads, block_heads)),
            qkv,
            q,
            qkv if q_norm is None else q_norm,
            qkv if k_norm is None else k_norm,
            qkv if cos_sin is None else cos_sin,
            step.positions,
            step.slots,
            pages.k,
            pages.v,
            pages.k_scale,
            pages.v_scale,
            eps,
            HEADS=heads,
            KV_HEADS=kv_heads,
            D=head_dim,
            ROTARY=0 if cos_sin is None else cos_sin.shape[1],
            INTERLEAVED=interleaved,
            NORM=q_norm is not None,
            VALUES=pages.values_from is None,
            PAGE=pages.page_size,
            FP8=pages.fp8,
            LIMIT=torch.finfo(torch.float32 if pages.fp8 else pages.v.dtype).max,
            BLOCK_HEADS=block_heads,
            BLOCK_D=block_d,
            num_warps=4 if block_heads * block_d >= 512 else 1,
        )
    return q
