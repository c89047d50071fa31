"""Norms over rows, fused with the residual sum before them and, where a product asks for it, the rounding after."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from quire.ops.shapes import ActivationQuant
from quire.ops.triton.launch import inputs_ready, launch
from quire.ops.triton.rounding import RoundedInput, in_8_bits, scale_of, unset

_PLAIN = ActivationQuant("fp8")  # in place of how to round, where nothing is rounded


@triton.jit(do_not_specialize=["eps", "fixed_scale", "fixed_zero"])
def _norm(
    x_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    scale_ptr,
    zero_ptr,
    eps,
    fixed_scale,
    fixed_zero,
    stride: tl.constexpr,
    first: tl.constexpr,
    width: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    CENTRED: tl.constexpr,
    ROUNDS: tl.constexpr,  # to the 8 bits of out_ptr, each row as ``rounding`` says
    FIXED: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    BLOCK: tl.constexpr,
    DEVICE: tl.constexpr,
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
    if ROUNDS:
        y = tl.where(mask, y.to(x_ptr.dtype.element_ty).to(tl.float32), 0.0)  # as a kernel of its own would read it
        KIND: tl.constexpr = out_ptr.dtype.element_ty
        scale, zero = scale_of(y, fixed_scale, fixed_zero, KIND, FIXED, SYMMETRIC)
        y = in_8_bits(y, scale, zero, KIND, not FIXED, DEVICE)
        tl.store(scale_ptr + tl.program_id(0), scale)
        tl.store(zero_ptr + tl.program_id(0), zero)
        # As many numbers a thread as of x: with more, all threads would hold more, and the sums have another order.
        place = tl.max_contiguous(place, 128 // x_ptr.dtype.element_ty.primitive_bitwidth)
    tl.store(out_ptr + place, y.to(out_ptr.dtype.element_ty), mask=mask)


def norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    residual: torch.Tensor | None,
    centred: bool,
    how: ActivationQuant | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """RMS norm of ``x + residual`` (layer norm if ``centred``); returns it and the sum, written over ``residual``.

    ``how``: rounded so, each row as a whole; then it is a ``RoundedInput``.
    """
    x = x.contiguous()
    total = x if residual is None else residual
    if how is None:
        out = torch.empty_like(x)
        _launch(x, residual, weight[None], bias, out, 0, eps, centred)
        return out, total
    rounded = unset(x.shape[0], x.shape[1], 1, how, x.device)
    _launch(x, residual, weight[None], bias, rounded[0], 0, eps, centred, (how, *rounded[1:]))
    return RoundedInput.of(rounded, x.dtype), total


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
    rounding: tuple[ActivationQuant, torch.Tensor, torch.Tensor] | None = None,
) -> None:
    """``rounding``: how, and where each row's scale and zero point go."""
    parts, width = weight.shape
    if len(x) == 0:
        return
    block = triton.next_power_of_2(width)
    how, scale, zero = rounding or (_PLAIN, weight, weight)
    launch(
        _norm,
        (len(x), parts),
        x,
        x if residual is None else residual,
        weight,
        weight if bias is None else bias,
        out,
        scale,
        zero,
        eps,
        how.scale or 1.0,
        float(how.zero),
        x.stride(0),
        start,
        width,
        HAS_RESIDUAL=residual is not None,
        HAS_BIAS=bias is not None,
        CENTRED=centred,
        ROUNDS=rounding is not None,
        FIXED=how.scale is not None,
        SYMMETRIC=how.symmetric,
        BLOCK=block,
        DEVICE=x.is_cuda,
        num_warps=min(16, max(1, block // 512)),
    )
