"""Products with experts: rows sorted by expert, each expert's rows times its own matrix.

The rows of each expert are known on the device alone, so the grid is an upper bound, as in prefill.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from quire.ops.backend import Routes
from quire.ops.triton.launch import inputs_ready, launch
from quire.ops.triton.tiles import Experts, expert_rows, sources_of


@triton.jit(do_not_specialize=["experts"])
def _grouped(
    x_ptr,
    stack_ptr,
    offsets_ptr,
    rows_ptr,
    bias_ptr,
    out_ptr,
    experts,
    N: tl.constexpr,
    K: tl.constexpr,
    GATHER: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    inputs_ready(PDL)
    tile = tl.program_id(1)
    expert, begin, end = expert_rows(tile, offsets_ptr, experts, BLOCK_M)
    if begin >= end:
        return
    row = begin + tl.arange(0, BLOCK_M)
    here = row < end
    source = sources_of(row, here, rows_ptr, GATHER)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    x_rows = x_ptr + source.to(tl.int64)[:, None] * K
    w_rows = stack_ptr + (expert.to(tl.int64) * N + n)[:, None] * K
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for at in tl.range(0, K, BLOCK_K):
        inside = (at + k < K)[None, :]
        x = tl.load(x_rows + (at + k)[None, :], mask=here[:, None] & inside, other=0.0)
        w = tl.load(w_rows + (at + k)[None, :], mask=(n < N)[:, None] & inside, other=0.0)
        acc = tl.dot(x, tl.trans(w), acc, input_precision="ieee")
    if HAS_BIAS:
        acc += tl.load(bias_ptr + expert * N + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    tl.store(
        out_ptr + row.to(tl.int64)[:, None] * N + n[None, :],
        acc.to(out_ptr.dtype.element_ty),
        mask=here[:, None] & (n < N)[None, :],
    )


def grouped_linear(
    x: torch.Tensor,
    stack: torch.Tensor,
    offsets: torch.Tensor,
    bias: torch.Tensor | None,
    rows: torch.Tensor | None,
) -> torch.Tensor:
    """``stack [E * N, K]``; otherwise as ``Ops.grouped_linear``."""
    x = x.contiguous()
    experts = len(offsets) - 1
    n, k = stack.shape[0] // experts, stack.shape[1]
    count = x.shape[0] if rows is None else rows.shape[0]
    out = torch.empty(count, n, dtype=x.dtype, device=x.device)
    few = count <= 16 * experts
    block_m, block_n = (16, 64) if few else (128, 128)
    launch(
        _grouped,
        (triton.cdiv(n, block_n), count // block_m + experts),
        x,
        stack,
        offsets,
        offsets if rows is None else rows,
        x if bias is None else bias,
        out,
        experts,
        N=n,
        K=k,
        GATHER=rows is not None,
        HAS_BIAS=bias is not None,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=128 if few else 64 if x.dtype.itemsize == 2 else 32,
        num_warps=4 if few else 8,
        num_stages=3,
    )
    return out


@triton.jit(do_not_specialize=["experts"])
def _arrange(
    x_ptr,
    order_ptr,  # [experts, K] int32
    offsets_ptr,
    rows_ptr,
    out_ptr,
    experts,
    K,
    GATHER: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    inputs_ready(PDL)
    expert, begin, end = expert_rows(tl.program_id(0), offsets_ptr, experts, BLOCK_M)
    if begin >= end:
        return
    row = begin + tl.arange(0, BLOCK_M)
    here = row < end
    source = sources_of(row, here, rows_ptr, GATHER)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    mask = here[:, None] & (k < K)[None, :]
    order = tl.load(order_ptr + expert * K + k, mask=k < K, other=0)
    x = tl.load(x_ptr + source.to(tl.int64)[:, None] * K + order[None, :], mask=mask, other=0.0)
    tl.store(out_ptr + row.to(tl.int64)[:, None] * K + k[None, :], x, mask=mask)


def arranged(x: torch.Tensor, order: torch.Tensor, experts: Experts) -> torch.Tensor:
    """``[R, K]``: the rows of ``experts``, inputs in the order that each one's matrix has them, ``order [E, K]``."""
    x = x.contiguous()
    count, k = order.shape
    rows = x.shape[0] if experts.rows is None else experts.rows.shape[0]
    out = torch.empty(rows, k, dtype=x.dtype, device=x.device)
    launch(
        _arrange,
        (rows // 16 + count, triton.cdiv(k, 256)),
        x,
        order,
        experts.offsets,
        experts.offsets if experts.rows is None else experts.rows,
        out,
        count,
        k,
        GATHER=experts.rows is not None,
        BLOCK_M=16,
        BLOCK_K=256,
        num_warps=4,
    )
    return out


@triton.jit
def _combine(
    y_ptr,
    places_ptr,
    weights_ptr,
    shared_ptr,
    gate_ptr,
    out_ptr,
    N: tl.constexpr,
    TOP_K: tl.constexpr,
    SHARED: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    inputs_ready(PDL)
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros([BLOCK], tl.float32)
    for choice in tl.range(TOP_K):
        row = tl.load(places_ptr + token * TOP_K + choice).to(tl.int64)
        weight = tl.load(weights_ptr + token * TOP_K + choice).to(tl.float32)
        acc += weight * tl.load(y_ptr + row * N + at, mask=at < N, other=0.0).to(tl.float32)
    if SHARED:
        shared = tl.load(shared_ptr + token * N + at, mask=at < N, other=0.0).to(tl.float32)
        if GATED:
            shared *= tl.sigmoid(tl.load(gate_ptr + token).to(tl.float32))
        acc += shared
    tl.store(out_ptr + token * N + at, acc.to(out_ptr.dtype.element_ty), mask=at < N)


def combine(
    y: torch.Tensor, routes: Routes, shared: torch.Tensor | None, shared_gate: torch.Tensor | None
) -> torch.Tensor:
    """As ``Ops.combine``."""
    tokens, top_k = routes.places.shape
    n = y.shape[1]
    out = torch.empty(tokens, n, dtype=y.dtype, device=y.device)
    block = min(1024, triton.next_power_of_2(n))
    if tokens:
        launch(
            _combine,
            (tokens, triton.cdiv(n, block)),
            y.contiguous(),
            routes.places,
            routes.weights,
            y if shared is None else shared.contiguous(),
            y if shared_gate is None else shared_gate.contiguous(),
            out,
            N=n,
            TOP_K=top_k,
            SHARED=shared is not None,
            GATED=shared_gate is not None,
            BLOCK=block,
        )
    return out
