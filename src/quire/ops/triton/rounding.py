"""Rounding the inputs of a product to 8 bits, as a checkpoint asks: by a kernel of its own, or in that of a norm."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from quire.ops.shapes import ActivationQuant
from quire.ops.triton.launch import inputs_ready, launch

_FP8_MAX = tl.constexpr(448.0)
_ROUND = tl.constexpr(12582912.0)  # 1.5 * 2 ** 23: adding and subtracting it rounds to the nearest, ties to even
# Few rows are rounded by several programs each (H100: one of 14,336 inputs in 1.6 us, not 2.7).
_PARTS, _MIN_BLOCK, _PROGRAMS = 4, 4096, 132
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
def scale_of(x, fixed_scale, fixed_zero, KIND: tl.constexpr, FIXED: tl.constexpr, SYMMETRIC: tl.constexpr):
    """Scale and zero point for numbers ``x``, those beyond their end 0: given ones, or from the numbers themselves."""
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
    return scale, zero


@triton.jit
def in_8_bits(x, scale, zero, KIND: tl.constexpr, IN_RANGE: tl.constexpr, DEVICE: tl.constexpr):
    """The roundings of ``x``, as float32. ``IN_RANGE``: none is far beyond what 8 bits hold."""
    scale = tl.maximum(scale, 1e-37)
    if DEVICE and IN_RANGE:
        # Division by a number that all share: two corrections make it exact (Markstein, IBM Journal 34-1, 1990).
        inverse = tl.div_rn(1.0, scale)
        q = x * inverse
        q = tl.fma(tl.fma(-q, scale, x), inverse, q)
        q = tl.fma(tl.fma(-q, scale, x), inverse, q)
    else:
        q = tl.div_rn(x, scale)
    if tl.int8 != KIND:
        q = tl.minimum(tl.maximum(q, -_FP8_MAX), _FP8_MAX)
        if not DEVICE:  # the interpreter cuts off what the device rounds
            most = q * 1048577.0
            q = tl.where(tl.abs(q) < 0.015625, (q + 24576.0) - 24576.0, most - (most - q))
    else:
        q = (tl.minimum(tl.maximum(q + zero, -129.0), 128.0) + _ROUND) - _ROUND
        q = tl.minimum(tl.maximum(q, -128.0), 127.0)
    return q


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
    PARTS: tl.constexpr,  # programs that share a group's numbers; each looks at all for the scale
    BLOCK: tl.constexpr,
    DEVICE: tl.constexpr,
    PDL: tl.constexpr,
):
    inputs_ready(PDL)
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    KIND: tl.constexpr = out_ptr.dtype.element_ty
    at = tl.arange(0, BLOCK)
    mask = (at < GROUP) & (group * GROUP + at < K)
    place = row * K + group * GROUP + at
    x = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)
    scale, zero = scale_of(x, fixed_scale, fixed_zero, KIND, FIXED, SYMMETRIC)
    if PARTS > 1:
        at = tl.program_id(2) * (BLOCK // PARTS) + tl.arange(0, BLOCK // PARTS)
        mask = (at < GROUP) & (group * GROUP + at < K)
        place = row * K + group * GROUP + at
        x = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + place, in_8_bits(x, scale, zero, KIND, not FIXED, DEVICE).to(KIND), mask=mask)
    tl.store(scale_ptr + row * tl.num_programs(1) + group, scale)
    tl.store(zero_ptr + row * tl.num_programs(1) + group, zero)


def rounded(x: torch.Tensor, how: ActivationQuant) -> Rounded:
    """``x [T, K]`` in 8 bits, with the scales ``[T, groups]`` and zero points that ``how`` asks for."""
    rows, k = x.shape
    group = min(how.group or k, k)
    groups = triton.cdiv(k, group)
    q, scale, zero = unset(rows, k, groups, how, x.device)
    block = triton.next_power_of_2(group)
    parts = _PARTS if block >= _MIN_BLOCK and rows * groups * _PARTS <= _PROGRAMS else 1
    launch(
        _round,
        (rows, groups, parts),
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
        PARTS=parts,
        BLOCK=block,
        DEVICE=x.device.type == "cuda",
        num_warps=max(1, min(16, block // 512)),
    )
    return q, scale, zero


def unset(rows: int, k: int, groups: int, how: ActivationQuant, device: torch.device) -> Rounded:
    """Memory for the roundings of ``[rows, k]``."""
    kind = torch.int8 if how.kind == "int8" else torch.float8_e4m3fn
    scale = torch.empty(rows, groups, dtype=torch.float32, device=device)
    return torch.empty(rows, k, dtype=kind, device=device), scale, torch.empty_like(scale)
