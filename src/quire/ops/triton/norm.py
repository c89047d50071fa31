"""Norms over rows, fused with the residual sum that comes before them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from quire.ops.triton.launch import inputs_ready, launch


@triton.jit(do_not_specialize=["eps"])
def _norm(
    x_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    eps,
    stride: tl.constexpr,
    first: tl.constexpr,
    width: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    CENTRED: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    inputs_ready(PDL)
    part = tl.program_id(1) * width
    at = tl.arange(0, BLOCK)
    place = tl.program_id(0).to(tl.int64) * stride + first + part + at
    mask = at < width
    x = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        x += tl.load(residual_ptr + place, mask=mask, other=0.0).to(tl.float32)
        tl.store(residual_ptr + place, x.to(residual_ptr.dtype.element_ty), mask=mask)
    if CENTRED:
        x = tl.where(mask, x - tl.sum(x, 0) / width, 0.0)
    y = x * tl.rsqrt(tl.sum(x * x, 0) / width + eps)
    y *= tl.load(weight_ptr + part + at, mask=mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        y += tl.load(bias_ptr + part + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + place, y.to(out_ptr.dtype.element_ty), mask=mask)


def norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    residual: torch.Tensor | None,
    centred: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """RMS norm of ``x + residual`` (layer norm if ``centred``); returns it and the sum, written over ``residual``."""
    x = x.contiguous()
    out = torch.empty_like(x)
    _launch(x, residual, weight[None], bias, out, 0, eps, centred)
    return out, x if residual is None else residual


def norm_columns(
    x: torch.Tensor, start: int, weight: torch.Tensor, bias: torch.Tensor | None, eps: float, centred: bool
) -> None:
    """As ``Ops.norm_columns``."""
    _launch(x, None, weight, bias, x, start, eps, centred)


def _launch(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    start: int,
    eps: float,
    centred: bool,
) -> None:
    parts, width = weight.shape
    if len(x) == 0:
        return
    block = triton.next_power_of_2(width)
    launch(
        _norm,
        (len(x), parts),
        x,
        x if residual is None else residual,
        weight,
        weight if bias is None else bias,
        out,
        eps,
        x.stride(0),
        start,
        width,
        HAS_RESIDUAL=residual is not None,
        HAS_BIAS=bias is not None,
        CENTRED=centred,
        BLOCK=block,
        num_warps=min(16, max(1, block // 512)),
    )
