"""Rows of the embedding, and activations."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from quire.ops.triton.launch import inputs_ready, launch
from quire.ops.triton.maths import tanh


@triton.jit(do_not_specialize=["multiplier"])
def _embed(table_ptr, ids_ptr, out_ptr, multiplier, width: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    inputs_ready(PDL)
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = at < width
    token = tl.load(ids_ptr + row).to(tl.int64)
    x = tl.load(table_ptr + token * width + at, mask=mask).to(tl.float32) * multiplier
    tl.store(out_ptr + row * width + at, x.to(out_ptr.dtype.element_ty), mask=mask)


def embed(table: torch.Tensor, ids: torch.Tensor, multiplier: float) -> torch.Tensor:
    """Rows ``ids [T]`` of ``table [V, K]``, times ``multiplier``."""
    width = table.shape[1]
    out = torch.empty(len(ids), width, dtype=table.dtype, device=table.device)
    block = min(2048, triton.next_power_of_2(width))
    if len(ids):
        launch(_embed, (len(ids), triton.cdiv(width, block)), table, ids, out, multiplier, width, BLOCK=block)
    return out


@triton.jit
def _activate(x, KIND: tl.constexpr):
    if KIND == "silu":
        return x / (1.0 + tl.exp(-x))
    elif KIND == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif KIND == "gelu_tanh":
        return 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    elif KIND == "relu":
        return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    else:
        tl.static_assert(KIND == "relu2")
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
        return x * x


@triton.jit
def gate_up(gate, up, KIND: tl.constexpr):
    """``act(gate) * up``, as ``Ops.gate_up_act``."""
    if KIND == "swiglu_oss":
        gate = tl.minimum(gate, 7.0, propagate_nan=tl.PropagateNan.ALL)
        up = tl.clamp(up, -7.0, 7.0, propagate_nan=tl.PropagateNan.ALL)
        y = gate / (1.0 + tl.exp(-1.702 * gate)) * (up + 1.0)
    else:  # Triton compiles what follows a return
        y = _activate(gate, KIND) * up
    return y


@triton.jit
def _act(
    x_ptr,
    out_ptr,
    width: tl.constexpr,
    KIND: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    inputs_ready(PDL)
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = at < width
    if GATED:
        gate = tl.load(x_ptr + row * 2 * width + at, mask=mask, other=0.0).to(tl.float32)
        up = tl.load(x_ptr + (row * 2 + 1) * width + at, mask=mask, other=0.0).to(tl.float32)
        y = gate_up(gate, up, KIND)
    else:
        y = _activate(tl.load(x_ptr + row * width + at, mask=mask, other=0.0).to(tl.float32), KIND)
    tl.store(out_ptr + row * width + at, y.to(out_ptr.dtype.element_ty), mask=mask)


def activate(x: torch.Tensor, activation: str, gated: bool) -> torch.Tensor:
    """``act(x)``, or ``act(x[:, :F]) * x[:, F:]`` if ``gated``."""
    x = x.contiguous()
    rows, width = x.shape[0], x.shape[1] // 2 if gated else x.shape[1]
    out = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    block = min(1024, triton.next_power_of_2(width))
    if rows:
        grid = (rows, triton.cdiv(width, block))
        launch(_act, grid, x, out, width, KIND=activation, GATED=gated, BLOCK=block)
    return out
