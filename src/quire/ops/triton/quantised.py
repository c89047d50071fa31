"""Which kernel serves a product with a quantised weight: an own one, or cuBLAS on what it expands to."""

from __future__ import annotations

import torch

from quire.ops.backend import Weight
from quire.ops.shapes import ActivationQuant
from quire.ops.triton import elementwise, moe, octets, planes
from quire.ops.triton.linear import wide_linear
from quire.ops.triton.narrow import NarrowWeight, OctetsWeight, PlanesWeight
from quire.ops.triton.rounding import RoundedInput, rounded
from quire.ops.triton.tiles import Experts

# From so many rows on it is faster to expand the weights for cuBLAS (H100, all products of an 8B model's layer: 639 us
# to 657 with 768 rows of 4 bits), and from fewer on where weights widen with more instructions than plain 4 bits.
EXPAND_ROWS, EXPAND_OTHERS_ROWS = 1024, 512
# From here on torch's product of 8-bit floats is faster (the same: 154 us to 144 with 256 rows, 190 to 202 with 384).
SCALED_MM_ROWS = 257


def linear(
    x: torch.Tensor,
    weight: NarrowWeight,
    bias: torch.Tensor | None,
    counters: torch.Tensor,
    activation: str | None = None,
) -> torch.Tensor:
    """``x [T, K] @ weight.T + bias``, gated by ``activation``."""
    if weight.order is not None:
        x = x.index_select(1, weight.order)
    rows = x.shape[0]
    if isinstance(weight, PlanesWeight):
        if rows >= (EXPAND_ROWS if weight.plain else EXPAND_OTHERS_ROWS):
            return wide_linear(x, planes.expand(weight, x.dtype), bias, activation)
        return planes.product(x, weight, bias, counters, activation=activation)
    if weight.activation is not None:
        return _rounded(x, weight, weight.activation, bias, counters, activation)
    if rows >= EXPAND_OTHERS_ROWS:
        return wide_linear(x, octets.expand(weight, x.dtype), bias, activation)
    return octets.product(x, weight, bias, counters, x.dtype, activation=activation)


def grouped_linear(
    x: torch.Tensor, stack: NarrowWeight, bias: torch.Tensor | None, counters: torch.Tensor, experts: Experts
) -> torch.Tensor:
    """As ``Ops.grouped_linear``. By an own kernel for any number of rows: all experts expanded would be too large."""
    if stack.order is not None:
        x, experts = moe.arranged(x, stack.order, experts), Experts(experts.offsets, None)
    if isinstance(stack, PlanesWeight):
        return planes.product(x, stack, bias, counters, experts=experts)
    if stack.activation is None or x.shape[0] == 0:
        return octets.product(x, stack, bias, counters, x.dtype, experts=experts)
    q, scale, zero = rounded(x, stack.activation)
    return octets.product(q, stack, bias, counters, x.dtype, scale, zero, experts=experts)


def rounding_of(weight: Weight | None) -> ActivationQuant | None:
    """How a norm may round what ``linear`` takes: where rows are rounded as a whole."""
    how = weight.activation if isinstance(weight, OctetsWeight) else None
    return None if how is None or how.group else how


def _rounded(
    x: torch.Tensor,
    weight: OctetsWeight,
    how: ActivationQuant,
    bias: torch.Tensor | None,
    counters: torch.Tensor,
    activation: str | None,
) -> torch.Tensor:
    """``x``: plain, or a ``RoundedInput``."""
    rows, dtype = x.shape[0], x.source if isinstance(x, RoundedInput) else x.dtype
    if rows == 0:
        return x.new_empty(0, weight.shape[0] // 2 if activation else weight.shape[0], dtype=dtype)
    q, scale, zero = x.rounded if isinstance(x, RoundedInput) else rounded(x, how)
    if rows >= SCALED_MM_ROWS and scaled_mm_takes(q, weight, dtype):
        out = torch._scaled_mm(q, weight.q.T, scale, weight.scale, out_dtype=dtype, use_fast_accum=True)
        out = out if bias is None else out + bias
        return elementwise.activate(out, activation, gated=True) if activation else out
    return octets.product(q, weight, bias, counters, dtype, scale, zero, activation=activation)


def scaled_mm_takes(q: torch.Tensor, weight: OctetsWeight, dtype: torch.dtype) -> bool:
    """Whether torch has a product for it: 8-bit floats with one scale for each row and each output."""
    n, k = weight.shape
    return (
        q.device.type == "cuda"
        and dtype is torch.bfloat16
        and q.dtype is torch.float8_e4m3fn
        and rounding_of(weight) is not None
        and weight.scale.shape[0] == 1
        and n % 16 == 0
        and k % 16 == 0
    )


def expand(
    weight: NarrowWeight, dtype: torch.dtype, ids: torch.Tensor | None = None, multiplier: float = 1.0
) -> torch.Tensor:
    """Plain weights, or the rows ``ids`` of them times ``multiplier``, in the order of the layer's inputs."""
    if isinstance(weight, PlanesWeight):
        out = planes.expand(weight, dtype, ids, multiplier)
    else:
        out = octets.expand(weight, dtype, ids, multiplier)
    if weight.order is None:
        return out
    return torch.empty_like(out).index_copy_(1, weight.order, out)
