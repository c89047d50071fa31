"""Weights and pages in the order that the kernels read (``csrc/weights.h``, ``csrc/kernels.h``)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from quire.ops.backend import Pages
from quire.ops.cpu import _kernels
from quire.ops.cpu.elements import TYPES, Elements, Rounding, elements_of
from quire.ops.layouts import Dense, Layout, join

PAGE_TYPES = (torch.float32, torch.float16, torch.bfloat16)
LANES = 16  # tokens of a page that attention takes at a time
_DENSE = 0  # csrc/weights.h: Code


@dataclass(frozen=True, slots=True)
class CpuWeight:
    """A packed weight; ``handle`` describes ``memory`` to the kernels."""

    shape: tuple[int, int]
    nbytes: int
    memory: tuple[torch.Tensor | None, ...]
    handle: object


@dataclass(frozen=True, slots=True)
class CpuParts:
    """Packed weights whose outputs lie one after another: ``shape`` (sum of N, K)."""

    shape: tuple[int, int]
    nbytes: int
    parts: tuple[CpuWeight, ...]


@dataclass(frozen=True, slots=True)
class CpuStack:
    """Packed weights of one shape ``(N, K)``."""

    shape: tuple[int, int]
    nbytes: int
    parts: tuple[CpuWeight, ...]
    handle: object


@dataclass(frozen=True)
class CpuPages(Pages):
    """k ``[pages, kv_heads, head_dim, page_size]``, v ``[pages, kv_heads, page_size, head_dim]``."""

    handle: object


def pack(engine: object, layouts: Iterable[Layout], int8_inputs: bool) -> CpuWeight | CpuParts:
    """Pack layers that lie side by side; raises ``ValueError`` for a shape or type that the kernels can't take."""
    parts = tuple(pack_one(engine, layout, int8_inputs) for layout in join(layouts))
    if len(parts) == 1:
        return parts[0]
    inputs = {part.shape[1] for part in parts}
    if len(inputs) != 1:
        raise ValueError(f"Weights that lie side by side must have the same inputs, not {sorted(inputs)}.")
    return CpuParts((sum(p.shape[0] for p in parts), inputs.pop()), sum(p.nbytes for p in parts), parts)


def pack_one(engine: object, layout: Layout, int8_inputs: bool) -> CpuWeight:
    if isinstance(layout, Dense):
        return _pack_dense(engine, layout.weight, Rounding())
    elements = elements_of(layout)
    if isinstance(elements, Elements):
        return _pack_elements(engine, elements.with_int8_inputs() if int8_inputs else elements)
    return _pack_dense(engine, narrowest(layout.dequantize()), elements)


def pack_stack(engine: object, layouts: Iterable[Layout], int8_inputs: bool) -> CpuStack:
    parts = tuple(pack_one(engine, layout, int8_inputs) for layout in layouts)
    if len({part.shape for part in parts}) != 1:
        raise ValueError("The weights of a stack must have one shape.")
    handle = _kernels.stack(tuple(part.handle for part in parts))
    return CpuStack(parts[0].shape, sum(part.nbytes for part in parts), parts, handle)


def narrowest(weight: torch.Tensor) -> torch.Tensor:
    """float32 numbers in 16 bits where that is exact."""
    for dtype in (torch.float16, torch.bfloat16):
        if torch.equal(short := weight.to(dtype), weight):
            return short
    return weight


def _pack_dense(engine: object, weight: torch.Tensor, rounding: Rounding) -> CpuWeight:
    source = weight.detach().contiguous()
    if source.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"Dense weights must be float32, float16 or bfloat16, not {source.dtype}.")
    n, k = source.shape
    buffer = torch.empty(-(-n // 16) * 16 * k, dtype=source.dtype)
    facts = (_DENSE, 1, TYPES[source.dtype], 0, 0, 0, 0.0, 0, 0, *rounding.facts)
    handle = _kernels.weight(buffer.data_ptr(), n, k, *facts)
    _kernels.pack(engine, handle, source.data_ptr(), 0, 0, 0, 0)
    return CpuWeight((n, k), buffer.nbytes, (buffer,), handle)


def _pack_elements(engine: object, e: Elements) -> CpuWeight:
    n, k = e.q.shape
    facts = (
        e.code,
        e.group,
        TYPES[e.scale.dtype] if e.scale_type is None else e.scale_type,
        e.second_kind,
        0 if e.second is None else TYPES[e.second.dtype],
        0 if e.super_scale is None else e.scale.shape[1] // e.super_scale.shape[1],
        float(e.zero),
        _address(e.table),
        _address(e.order),
        *e.rounding.facts,
    )
    buffer = torch.empty(_kernels.weight_bytes(_kernels.weight(0, n, k, *facts)), dtype=torch.uint8)
    handle = _kernels.weight(buffer.data_ptr(), n, k, *facts)
    _kernels.pack(engine, handle, *map(_address, (e.q, e.scale, e.second, e.super_scale, e.super_second)))
    return CpuWeight((n, k), buffer.nbytes, (buffer, e.order), handle)


def _address(x: torch.Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def new_pages(num_pages: int, page_size: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> CpuPages:
    if dtype not in PAGE_TYPES:
        raise ValueError(f"Pages must be float32, float16 or bfloat16, not {dtype}.")
    if page_size % LANES or page_size <= 0:
        raise ValueError(f"page_size must be a multiple of {LANES} on CPU, not {page_size}.")
    if head_dim % 8:
        raise ValueError(f"head_dim must be a multiple of 8 on CPU, not {head_dim}.")
    k = torch.empty((num_pages, kv_heads, head_dim, page_size), dtype=dtype)
    v = torch.empty((num_pages, kv_heads, page_size, head_dim), dtype=dtype)
    handle = _kernels.pages(k.data_ptr(), v.data_ptr(), TYPES[dtype], num_pages, kv_heads, head_dim, page_size)
    return CpuPages(k, v, page_size, handle)
