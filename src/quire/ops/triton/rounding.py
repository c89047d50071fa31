"""Rounding the inputs of a product to 8 bits, as a checkpoint asks: by a kernel of its own, or in that of a norm."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from quire.ops.layouts import ActivationQuant
from quire.ops.triton.launch import inputs_ready, launch

_FP8_MAX = tl.constexpr(448.0)
_ROUND = tl.constexpr(12582912.0)  # 1.5 * 2 ** 23: adding and subtracting it rounds to the nearest, ties to even
Rounded = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # numbers [T, K], scales and zero points [T, groups] float32


class RoundedInput(torch.Tensor):
    """The numbers ``[T, K]`` of rounded inputs: what a norm returns to the product that alone reads it.

    A tensor, so that it goes where plain inputs go; what is computed of it by torch is a plain one.
    """

    rounded: Rounded
    source: torch.dtype  # of the inputs before

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def of(cls, rounded: Rounded, source: torch.dtype) -> RoundedInput:
        x = rounded[0].as_subclass(cls)
        x.rounded, x.source = rounded, source
        return x


@triton.jit
def in_8_bits(
    x, fixed_scale, fixed_zero, KIND: tl.constexpr, FIXED: tl.constexpr, SYMMETRIC: tl.constexpr, DEVICE: tl.constexpr
):
    """Numbers ``x`` that share a scale, those beyond their end 0: their roundings, as float32, scale and zero point."""
    FLOAT: tl.constexpr = tl.int8 != KIND
    zero = 0.0
    if FIXED:
        scale = fixed_scale
        zero = fixed_zero
    elif FLOAT or SYMMETRIC:
        scale = tl.div_rn(tl.max(tl.abs(x), 0), 448.0 if FLOAT else 127.5)
    else:
        low = tl.minimum(tl.min(x, 0), 0.0)
        scale = tl.div_rn(tl.maximum(tl.max(x, 0), 0.0) - low, 255.0)
        zero = tl.minimum(tl.maximum(-128.0 - tl.div_rn(low, tl.maximum(scale, 1e-37)), -128.0), 127.0)
        zero = (zero + _ROUND) - _ROUND
    q = tl.div_rn(x, tl.maximum(scale, 1e-37))
    if FLOAT:
        q = tl.minimum(tl.maximum(q, -_FP8_MAX), _FP8_MAX)
        if not DEVICE:  # the interpreter cuts off what the device rounds
            most = q * 1048577.0
            q = tl.where(tl.abs(q) < 0.015625, (q + 24576.0) - 24576.0, most - (most - q))
    else:
        q = (tl.minimum(tl.maximum(q + zero, -129.0), 128.0) + _ROUND) - _ROUND
        q = tl.minimum(tl.maximum(q, -128.0), 127.0)
    return q, scale, zero


@triton.jit(do_not_specialize=["fixed_scale", "fixed_zero"])
def _round(
    x_ptr,
    out_ptr,
    scale_ptr,
    zero_ptr,
    K,
    fixed_scale,
    fixed_zero,
    GROUP: tl.constexpr,
    FIXED: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    BLOCK: tl.constexpr,
    DEVICE: tl.constexpr,
    PDL: tl.constexpr,
):
    inputs_ready(PDL)
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    at = group * GROUP + tl.arange(0, BLOCK)
    mask = (tl.arange(0, BLOCK) < GROUP) & (at < K)
    x = tl.load(x_ptr + row * K + at, mask=mask, other=0.0).to(tl.float32)
    q, scale, zero = in_8_bits(x, fixed_scale, fixed_zero, out_ptr.dtype.element_ty, FIXED, SYMMETRIC, DEVICE)
    tl.store(out_ptr + row * K + at, q.to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(scale_ptr + row * tl.num_programs(1) + group, scale)
    tl.store(zero_ptr + row * tl.num_programs(1) + group, zero)


def rounded(x: torch.Tensor, how: ActivationQuant) -> Rounded:
    """``x [T, K]`` in 8 bits, with the scales ``[T, groups]`` and zero points that ``how`` asks for."""
    rows, k = x.shape
    group = min(how.group or k, k)
    groups = triton.cdiv(k, group)
    q, scale, zero = unset(rows, k, groups, how, x.device)
    block = triton.next_power_of_2(group)
    launch(
        _round,
        (rows, groups),
        x.contiguous(),
        q,
        scale,
        zero,
        k,
        how.scale or 1.0,
        float(how.zero),
        GROUP=group,
        FIXED=how.scale is not None,
        SYMMETRIC=how.symmetric,
        BLOCK=block,
        DEVICE=x.device.type == "cuda",
        num_warps=max(1, min(32, block // 512)),
    )
    return q, scale, zero


def unset(rows: int, k: int, groups: int, how: ActivationQuant, device: torch.device) -> Rounded:
    """Memory for the roundings of ``[rows, k]``."""
    kind = torch.int8 if how.kind == "int8" else torch.float8_e4m3fn
    scale = torch.empty(rows, groups, dtype=torch.float32, device=device)
    return torch.empty(rows, k, dtype=kind, device=device), scale, torch.empty_like(scale)
