"""Products with dense weights: cuBLAS, and an own kernel for the few rows of a decode step.

With few rows a product is bound by reading the weights. cuBLAS reaches a fraction of the bandwidth there, most of all
where a matrix is too small to fill the device with tiles; this kernel splits the inputs too, so that all of a small
matrix is on its way at once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from quire.ops.triton import elementwise, gated
from quire.ops.triton.launch import inputs_ready, launch
from quire.ops.triton.tiles import leave_part, outputs_of, store_outputs, sum_parts

MAX_ROWS = 16


@triton.jit(do_not_specialize=["rows", "splits"])
def _skinny(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    partial_ptr,  # [splits, BLOCK_M, N] float32
    counter_ptr,  # one int32 for each block of outputs, zero before and after
    rows,
    N,
    K,
    splits,
    HAS_BIAS: tl.constexpr,
    DOT: tl.constexpr,
    SPLIT: tl.constexpr,
    ACTIVATION: tl.constexpr,  # "": none
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    block = tl.program_id(0)
    split = tl.program_id(1)
    n, real = outputs_of(block, N, BLOCK_N, ACTIVATION != "")
    m = tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    begin = 0
    end = K
    if SPLIT:
        share = tl.cdiv(tl.cdiv(K, splits), BLOCK_K) * BLOCK_K
        begin = split * share
        end = tl.minimum(begin + share, K)
    weight_rows = weight_ptr + n.to(tl.int64)[:, None] * K
    if DOT:
        inputs_ready(PDL)
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for at in tl.range(begin, end, BLOCK_K):
            w = tl.load(weight_rows + (at + k)[None, :], mask=real[:, None] & (at + k < K)[None, :], other=0.0)
            x = tl.load(
                x_ptr + m[:, None] * K + (at + k)[None, :],
                mask=(m < rows)[:, None] & (at + k < K)[None, :],
                other=0.0,
            )
            acc = tl.dot(x, tl.trans(w), acc, input_precision="ieee")
    else:
        # Weights are on their way before the inputs are there: the kernel ahead may still run.
        w = tl.load(weight_rows + (begin + k)[None, :], mask=real[:, None] & (begin + k < K)[None, :], other=0.0)
        inputs_ready(PDL)
        products = tl.zeros([BLOCK_M, BLOCK_N, BLOCK_K], tl.float32)
        for at in tl.range(begin, end, BLOCK_K):
            x = tl.load(
                x_ptr + m[:, None] * K + (at + k)[None, :],
                mask=(m < rows)[:, None] & (at + k < K)[None, :],
                other=0.0,
            )
            now = w
            ahead = at + BLOCK_K + k
            w = tl.load(weight_rows + ahead[None, :], mask=real[:, None] & (ahead < K)[None, :], other=0.0)
            products += now.to(tl.float32)[None, :, :] * x.to(tl.float32)[:, None, :]
        acc = tl.sum(products, 2)
    if SPLIT:
        mask = (m < rows)[:, None] & real[None, :]
        cell = m[:, None] * N + n[None, :]
        size = BLOCK_M * N
        if leave_part(acc, partial_ptr, cell, mask, size, split, counter_ptr + block) != splits - 1:
            return
        acc = sum_parts(partial_ptr, cell, mask, size, splits, counter_ptr + block)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + n, mask=real, other=0.0).to(tl.float32)[None, :]
    store_outputs(tl.trans(acc), out_ptr, block, m, m < rows, N, BLOCK_N, ACTIVATION)


def skinny_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    counters: torch.Tensor,
    activation: str | None = None,
) -> torch.Tensor:
    """``x [T, K] @ weight.T + bias``, gated by ``activation``, for at most ``MAX_ROWS`` rows.

    ``counters``: int32 zeros, left zero.
    """
    x = x.contiguous()
    rows = x.shape[0]
    n, k = weight.shape
    out = torch.empty(rows, n // 2 if activation else n, dtype=x.dtype, device=x.device)
    dot, block_n, block_k, splits, warps, stages = _tiles(rows, n, k)
    if activation:
        block_n = max(2, block_n)
    block_m = max(16 if dot else 1, triton.next_power_of_2(rows))
    partial = torch.empty(splits if splits > 1 else 0, block_m, n, dtype=torch.float32, device=x.device)
    launch(
        _skinny,
        (triton.cdiv(n, block_n), splits),
        x,
        weight,
        weight if bias is None else bias,
        out,
        partial,
        counters,
        rows,
        n,
        k,
        splits,
        HAS_BIAS=bias is not None,
        DOT=dot,
        SPLIT=splits > 1,
        ACTIVATION=activation or "",
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        num_warps=warps,
        num_stages=stages,
    )
    return out


def _tiles(rows: int, n: int, k: int) -> tuple[bool, int, int, int, int, int]:
    """Whether to use the tensor cores, BLOCK_N, BLOCK_K, SPLITS, warps and stages."""
    if rows <= 4:
        return False, 1 if rows == 1 and k > 1024 else 2, 1024, 1, 4, 3
    return True, 32, 128, 4 if n < 2048 else 1, 4, 4


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    counters: torch.Tensor,
    activation: str | None = None,
) -> torch.Tensor:
    """The fastest by shape alone, so that a row's result depends on nothing but the batch size."""
    if use_skinny(x.shape[0], weight.shape[0], weight.shape[1]):
        return skinny_linear(x, weight, bias, counters, activation)
    return wide_linear(x, weight, bias, activation)


def wide_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str | None = None
) -> torch.Tensor:
    """cuBLAS, or one kernel for the product and its activation."""
    if activation is None:
        return F.linear(x, weight, bias)
    if bias is None and gated.takes(x, weight.shape[0], activation):
        return gated.gated_linear(x, weight, activation)
    return elementwise.activate(F.linear(x, weight, bias), activation, gated=True)


def use_skinny(rows: int, n: int, k: int) -> bool:
    """Where the own kernel beats cuBLAS (H200, bf16).

    One row: 4.1 us to 5.4 (4096 x 1024), 3.1 to 12.7 (1024 x 2048), 3.8 to 6.7 (1024 x 3072), 10.8 to 13.0
    (4096 x 4096), 55 to 57 (28672 x 4096). More rows: cuBLAS is at 85 to 97 % of the bandwidth on large matrices, but
    takes 6 to 13 us for 1024 x 2048 (own 4.9) and 6.7 for 1024 x 3072 (own 5.7).
    """
    if k % 8 or not 0 < rows <= MAX_ROWS:
        return False
    return rows == 1 or (n * k <= 8 << 20 and (rows <= 4 or n < 2048))
