"""Products with weights of 8 bits, integers or floats, by inputs in 16 bits or, rounded as a checkpoint asks, in 8.

Weights lie as in the checkpoint, ``[N, K]``. They are the left operand: integers and floats that must widen do so in
registers. Those of experts lie one after another, ``[E * N, K]``.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl

from quire.ops.triton.launch import inputs_ready, launch
from quire.ops.triton.narrow import OctetsWeight
from quire.ops.triton.tiles import (
    Experts,
    Tiles,
    expert_rows,
    first_row,
    inputs_of,
    leave_part,
    outputs_of,
    prefetch,
    settled,
    sources_of,
    splits_for,
    spread,
    store_outputs,
    sum_parts,
)

# Four integers of 8 bits in a register, to four floats: bytes q + 128 are the low bits of 2^23 + 128 + q.
_INTEGERS = tl.constexpr(
    "{ .reg .b32 t; xor.b32 t, $4, 0x80808080;"
    + "".join(f"prmt.b32 ${i}, t, 0x4B000000, 0x{0x7540 + i:X}; sub.rn.f32 ${i}, ${i}, 0f4B000080;" for i in range(4))
    + "}"
)


@triton.jit
def _exact(w, DTYPE: tl.constexpr, DEVICE: tl.constexpr):
    """Weights as floats, which hold all of them."""
    if DEVICE and w.dtype == tl.int8:  # the conversion instruction is slow
        floats = tl.inline_asm_elementwise(_INTEGERS, "=f,=f,=f,=f,r", [w], tl.float32, True, 4).to(DTYPE)
    else:
        floats = w.to(DTYPE)
    return floats


@triton.jit
def _of_groups(ptr, at, place, real, STORED, K, GROUP: tl.constexpr, BLOCK_K: tl.constexpr):
    """What each weight of a block has from its group: ``[N, 1]`` or ``[N, BLOCK_K]``."""
    if GROUP >= BLOCK_K:
        values = tl.load(ptr + (at // GROUP) * STORED + place, mask=real, other=0.0)[:, None]
    else:
        group = at // GROUP + tl.arange(0, BLOCK_K // GROUP)
        mask = real[:, None] & (group * GROUP < K)[None, :]
        values = spread(tl.load(ptr + group[None, :] * STORED + place[:, None], mask=mask, other=0.0), BLOCK_K)
    return values


@triton.jit(do_not_specialize=["rows", "splits", "experts"])
def _product(
    x_ptr,
    q_ptr,
    scale_ptr,  # [groups, STORED] float32
    offset_ptr,
    x_scale_ptr,  # of each row of x: [K / X_GROUP] float32
    x_zero_ptr,  # of each row of x, float32
    sums_ptr,
    bias_ptr,
    out_ptr,
    partial_ptr,  # [splits, rows, N] float32
    counter_ptr,  # one int32 for each tile, zero before and after
    offsets_ptr,  # of experts: as in ``Routes``
    rows_ptr,
    rows,
    N,
    STORED,  # outputs of all experts
    K,
    splits,
    experts,
    GROUP: tl.constexpr,  # 0: one for all inputs
    X_GROUP: tl.constexpr,  # 0: one for all inputs; -1: inputs have no scale
    HAS_OFFSET: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SPLIT: tl.constexpr,
    EVEN: tl.constexpr,  # K is a multiple of BLOCK_K
    EXPERTS: tl.constexpr,
    GATHER: tl.constexpr,
    DESCRIBED: tl.constexpr,  # x_ptr is a tensor descriptor
    ACTIVATION: tl.constexpr,  # "": none
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DEVICE: tl.constexpr,
    PDL: tl.constexpr,
):
    XTYPE: tl.constexpr = x_ptr.dtype if DESCRIBED else x_ptr.dtype.element_ty
    INTEGER: tl.constexpr = tl.int8 == XTYPE
    WIDENS: tl.constexpr = q_ptr.dtype.element_ty != XTYPE
    CHAIN: tl.constexpr = WIDENS or (GROUP == 0 and X_GROUP <= 0)
    tile = tl.program_id(0)
    n, real = outputs_of(tl.program_id(1), N, BLOCK_N, ACTIVATION != "")
    split = tl.program_id(2)
    k = tl.arange(0, BLOCK_K)
    begin = 0
    end = K
    if SPLIT:
        share = tl.cdiv(tl.cdiv(K, splits), BLOCK_K) * BLOCK_K
        begin = split * share
        end = tl.minimum(begin + share, K)
    if PDL and not EXPERTS:  # weights come to the L2 while the kernel ahead still runs
        for ahead in tl.static_range(4):
            prefetch(q_ptr + tl.where(real, n, 0).to(tl.int64) * K + tl.minimum(begin + ahead * 128, K - 1))
    inputs_ready(PDL)
    first = first_row(tile, rows, BLOCK_M, DESCRIBED)
    last = rows
    expert = 0
    if EXPERTS:
        expert, first, last = expert_rows(tile, offsets_ptr, experts, BLOCK_M)
        if first >= last:
            return
    row = first + tl.arange(0, BLOCK_M)
    here = row < last
    source = sources_of(row, here, rows_ptr, GATHER)
    place = expert * N + n
    w_rows = q_ptr + tl.where(real, place, 0).to(tl.int64)[:, None] * K + k[None, :]
    if not DESCRIBED:
        x_rows = x_ptr + source.to(tl.int64)[:, None] * K + k[None, :]
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.int32 if INTEGER and CHAIN else tl.float32)
    if GROUP == 0:
        whole_scale = tl.load(scale_ptr + place, mask=real, other=0.0)[:, None]
    for at in tl.range(begin, end, BLOCK_K):
        inside = (at + k < K)[None, :]
        w = tl.load(w_rows + at) if EVEN else tl.load(w_rows + at, mask=inside, other=0.0)
        if DESCRIBED:
            x = x_ptr.load([first, at])
        else:
            x = tl.load(x_rows + at, mask=here[:, None] if EVEN else here[:, None] & inside, other=0.0)
        if WIDENS:
            exact = _exact(w, XTYPE if GROUP == 0 else tl.float32, DEVICE)
            if GROUP > 0:
                exact *= _of_groups(scale_ptr, at, place, real, STORED, K, GROUP, BLOCK_K)
            if HAS_OFFSET:
                exact += _of_groups(offset_ptr, at, place, real, STORED, K, GROUP, BLOCK_K)
            acc = tl.dot(exact.to(XTYPE), tl.trans(x), acc, input_precision="ieee")
            if DEVICE:
                acc = settled(acc)
        elif CHAIN:
            if INTEGER:
                acc = tl.dot(w, tl.trans(x), acc, out_dtype=tl.int32)
            else:
                acc = tl.dot(w, tl.trans(x), acc, input_precision="ieee")
        else:
            if INTEGER:
                part = tl.dot(w, tl.trans(x), out_dtype=tl.int32).to(tl.float32)
            else:
                part = tl.dot(w, tl.trans(x), input_precision="ieee")
            if GROUP > 0:
                part *= tl.load(scale_ptr + (at // GROUP) * STORED + place, mask=real, other=0.0)[:, None]
            if X_GROUP > 0:
                x_scale = tl.load(x_scale_ptr + source * tl.cdiv(K, X_GROUP) + at // X_GROUP, mask=here, other=0.0)
                part *= x_scale[None, :]
            acc += part
    if SPLIT:
        mask = here[None, :] & real[:, None]
        cell = row[None, :] * N + n[:, None]
        size = rows.to(tl.int64) * N
        sign_ptr = counter_ptr + tl.program_id(1) * tl.num_programs(0) + tile
        if leave_part(acc, partial_ptr, cell, mask, size, split, sign_ptr) != splits - 1:
            return
        total = sum_parts(partial_ptr, cell, mask, size, splits, sign_ptr)
    else:
        total = acc.to(tl.float32)
    if HAS_ZERO:
        zero = tl.load(x_zero_ptr + source, mask=here, other=0.0)
        total -= zero[None, :] * tl.load(sums_ptr + place, mask=real, other=0).to(tl.float32)[:, None]
    if GROUP == 0:
        total *= whole_scale
    if X_GROUP == 0:
        total *= tl.load(x_scale_ptr + source, mask=here, other=0.0)[None, :]
    if HAS_BIAS:
        total += tl.load(bias_ptr + place, mask=real, other=0.0).to(tl.float32)[:, None]
    store_outputs(total, out_ptr, tl.program_id(1), row, here, N, BLOCK_N, ACTIVATION)


def product(
    x: torch.Tensor,
    weight: OctetsWeight,
    bias: torch.Tensor | None,
    counters: torch.Tensor,
    dtype: torch.dtype,
    scale: torch.Tensor | None = None,
    zero: torch.Tensor | None = None,
    tiles: Tiles | None = None,
    experts: Experts | None = None,
    activation: str | None = None,
) -> torch.Tensor:
    """``x [T, K] @ weight.T + bias`` in ``dtype``, gated by ``activation``; with ``experts`` as ``Ops.grouped_linear``.

    ``x`` may be rounded to 8 bits, with its scales and zero points.
    """
    x = x.contiguous()
    stored, k = weight.shape
    count = 1 if experts is None else len(experts.offsets) - 1
    n = stored // count
    rows = x.shape[0] if experts is None or experts.rows is None else experts.rows.shape[0]
    out = torch.empty(rows, n // 2 if activation else n, dtype=dtype, device=x.device)
    if rows == 0:
        return out
    x_groups = 0 if scale is None else scale.shape[1]
    x_group = -1 if scale is None else 0 if x_groups == 1 else triton.cdiv(k, x_groups)
    group = 0 if weight.scale.shape[0] == 1 and weight.offset is None else weight.group
    how = weight.activation
    if how is not None and how.group and x_group > 0:
        x_group = how.group
    t = tiles or plan_tiles(rows // count if experts else rows, n, k, x.dtype.itemsize, experts is not None)
    m_tiles = triton.cdiv(rows, t.block_m) if experts is None else rows // t.block_m + count
    block_k = t.block_k
    for whole in (group if x.dtype is weight.q.dtype else 0, x_group):
        if whole > 0 and whole % block_k:
            block_k = whole & -whole  # groups that are cut into blocks are powers of two, or multiples of 256
    partial = torch.empty(t.splits if t.splits > 1 else 0, rows, n, dtype=torch.float32, device=x.device)
    gather = experts is not None and experts.rows is not None
    inputs, described = inputs_of(x, t.block_m, block_k, gather)
    launch(
        _product,
        (m_tiles, triton.cdiv(n, t.block_n), t.splits),
        inputs,
        weight.q,
        weight.scale,
        weight.scale if weight.offset is None else weight.offset,
        weight.scale if scale is None else scale,
        weight.scale if zero is None else zero,
        weight.q if weight.sums is None else weight.sums,
        weight.scale if bias is None else bias,
        out,
        partial,
        counters,
        counters if experts is None else experts.offsets,
        counters if experts is None or experts.rows is None else experts.rows,
        rows,
        n,
        stored,
        k,
        t.splits,
        count,
        GROUP=group,
        X_GROUP=x_group,
        HAS_OFFSET=weight.offset is not None,
        HAS_ZERO=zero is not None and weight.sums is not None,
        HAS_BIAS=bias is not None,
        SPLIT=t.splits > 1,
        EVEN=k % block_k == 0,
        EXPERTS=experts is not None,
        GATHER=gather,
        DESCRIBED=described,
        ACTIVATION=activation or "",
        BLOCK_M=t.block_m,
        BLOCK_N=t.block_n,
        BLOCK_K=block_k,
        DEVICE=x.is_cuda,
        num_warps=t.warps,
        num_stages=t.stages,
    )
    return out


@triton.jit(do_not_specialize=["rows", "multiplier"])
def _expand(
    ids_ptr,
    q_ptr,
    scale_ptr,
    offset_ptr,
    out_ptr,
    rows,
    N,
    K,
    multiplier,
    GROUP: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    GATHER: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    inputs_ready(PDL)
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    here = row < rows
    at = row.to(tl.int64)
    if GATHER:
        at = tl.load(ids_ptr + row, mask=here, other=0)
    mask = here[:, None] & (k < K)[None, :]
    w = tl.load(q_ptr + at[:, None] * K + k[None, :], mask=mask, other=0.0).to(tl.float32)
    scales = (k // GROUP)[None, :] * N + at[:, None]
    w *= tl.load(scale_ptr + scales, mask=mask, other=0.0)
    if HAS_OFFSET:
        w += tl.load(offset_ptr + scales, mask=mask, other=0.0)
    if GATHER:
        w *= multiplier
    tl.store(out_ptr + row.to(tl.int64)[:, None] * K + k[None, :], w.to(out_ptr.dtype.element_ty), mask=mask)


def expand(
    weight: OctetsWeight, dtype: torch.dtype, ids: torch.Tensor | None = None, multiplier: float = 1.0
) -> torch.Tensor:
    """Plain weights, or the rows ``ids`` of them times ``multiplier``."""
    n, k = weight.shape
    rows = n if ids is None else len(ids)
    out = torch.empty(rows, k, dtype=dtype, device=weight.q.device)
    if rows == 0:
        return out
    block_n = 16
    launch(
        _expand,
        (triton.cdiv(rows, block_n), triton.cdiv(k, 256)),
        weight.scale if ids is None else ids,
        weight.q,
        weight.scale,
        weight.scale if weight.offset is None else weight.offset,
        out,
        rows,
        n,
        k,
        multiplier,
        GROUP=weight.group,
        HAS_OFFSET=weight.offset is not None,
        GATHER=ids is not None,
        BLOCK_N=block_n,
        BLOCK_K=256,
        num_warps=4,
    )
    return out


def plan_tiles(rows: int, n: int, k: int, item: int, grouped: bool = False) -> Tiles:
    """By shape alone, so that a row's result depends on nothing but the batch size (H100: benchmarks/results).

    ``item``: bytes of an input. ``grouped``: for experts that have so many rows each.
    """
    if grouped:  # there are programs enough
        return replace(plan_tiles(rows, n, k, item), splits=1)
    if item > 2:  # for exactness, not speed
        return Tiles(16 if rows <= 16 else 64, 64, 1, 4, 2)
    block_m = 128 if rows >= 96 else 64 if rows > 32 else 32 if rows > 16 else 16
    each, blocks = triton.cdiv(rows, block_m) * triton.cdiv(n, 64), k // 512
    if item == 2:  # weights widen
        splits = splits_for(each, blocks, 800 if rows <= 32 else 390)
        return Tiles(block_m, 64, splits, 4, 4 if rows <= 32 or (block_m == 64 and each * splits <= 264) else 3)
    if rows > 64 and each > 390:
        return Tiles(block_m, 128, 1, 4, 3)
    splits = splits_for(each, blocks, 100 if k <= 8192 or rows > 64 else 264)
    if block_m == 16:
        return Tiles(16, 64, splits, 4, 6 if splits == 1 else 4, block_k=256)
    alone = each * splits <= 132  # on its processor
    deep = alone or block_m <= 64
    return Tiles(block_m, 64, splits, 4, 3 if block_m == 64 and not alone else 4, block_k=256 if deep else 128)
