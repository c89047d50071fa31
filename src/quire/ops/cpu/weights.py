"""Weights and pages in the order that the kernels read (``csrc/weights.h``, ``csrc/kernels.h``)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from quire.ops.backend import Pages
from quire.ops.cpu import _kernels
from quire.ops.layouts import Dense, GroupedInt, Layout

TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
GROUP_STEP = 8  # inputs the kernels take at a time
LANES = 16  # tokens of a page that attention takes at a time


@dataclass(frozen=True, slots=True)
class CpuWeight:
    """A packed weight; ``handle`` describes ``buffer`` to the kernels."""

    shape: tuple[int, int]
    nbytes: int
    buffer: torch.Tensor
    handle: object


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


def pack(engine: object, layout: Layout) -> CpuWeight:
    """Pack a layout; raises ``ValueError`` for a shape or type that the kernels can't take."""
    return _pack_dense(engine, layout) if isinstance(layout, Dense) else _pack_grouped(engine, layout)


def pack_stack(engine: object, layouts: Iterable[Layout]) -> CpuStack:
    parts = tuple(pack(engine, layout) for layout in layouts)
    if len({part.shape for part in parts}) != 1:
        raise ValueError("The weights of a stack must have one shape.")
    handle = _kernels.stack(tuple(part.handle for part in parts))
    return CpuStack(parts[0].shape, sum(part.nbytes for part in parts), parts, handle)


def _pack_dense(engine: object, layout: Dense) -> CpuWeight:
    source = layout.weight.detach().contiguous()
    if source.dtype not in TYPES:
        raise ValueError(f"Dense weights must be float32, float16 or bfloat16, not {source.dtype}.")
    n, k = layout.shape
    buffer = torch.empty(-(-n // 16) * 16 * k, dtype=source.dtype)
    handle = _kernels.weight(buffer.data_ptr(), n, k, 0, 1, TYPES[source.dtype], 0)
    _kernels.pack(engine, handle, source.data_ptr(), 0, 0)
    return CpuWeight((n, k), buffer.nbytes, buffer, handle)


def _pack_grouped(engine: object, layout: GroupedInt) -> CpuWeight:
    _check_grouped(layout)
    n, k = layout.shape
    q, scale = layout.q.contiguous(), layout.scale.contiguous()
    minimum = None if layout.minimum is None else layout.minimum.to(scale.dtype).contiguous()
    facts = (n, k, layout.bits, layout.group, TYPES[scale.dtype], int(minimum is not None))
    buffer = torch.empty(_kernels.weight_bytes(_kernels.weight(0, *facts)), dtype=torch.uint8)
    handle = _kernels.weight(buffer.data_ptr(), *facts)
    _kernels.pack(engine, handle, q.data_ptr(), scale.data_ptr(), 0 if minimum is None else minimum.data_ptr())
    return CpuWeight((n, k), buffer.nbytes, buffer, handle)


def _check_grouped(layout: GroupedInt) -> None:
    n, k = layout.shape
    wanted = {4: torch.uint8, 8: torch.int8}.get(layout.bits)
    if wanted is None:
        raise ValueError(f"Grouped weights must have 4 or 8 bits, not {layout.bits}.")
    if layout.q.dtype != wanted:
        raise ValueError(f"Grouped weights of {layout.bits} bits must come as {wanted}, not {layout.q.dtype}.")
    if layout.group % GROUP_STEP or layout.group <= 0:
        raise ValueError(f"A group must be a multiple of {GROUP_STEP}, not {layout.group}.")
    if k % layout.group:
        raise ValueError(f"The {k} inputs of a grouped weight must be a multiple of its group, {layout.group}.")
    for name, part in (("scale", layout.scale), ("minimum", layout.minimum)):
        if part is None:
            continue
        if part.dtype not in (torch.float32, torch.float16):
            raise ValueError(f"The {name} of a grouped weight must be float32 or float16, not {part.dtype}.")
        if tuple(part.shape) != (n, k // layout.group):
            raise ValueError(f"The {name} must have shape {(n, k // layout.group)}, not {tuple(part.shape)}.")
    if layout.minimum is not None and layout.minimum.dtype != layout.scale.dtype:
        raise ValueError("The scale and the minimum of a grouped weight must have one type.")


def new_pages(num_pages: int, page_size: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> CpuPages:
    if dtype not in TYPES:
        raise ValueError(f"Pages must be float32, float16 or bfloat16, not {dtype}.")
    if page_size % LANES or page_size <= 0:
        raise ValueError(f"page_size must be a multiple of {LANES} on CPU, not {page_size}.")
    if head_dim % 8:
        raise ValueError(f"head_dim must be a multiple of 8 on CPU, not {head_dim}.")
    k = torch.empty((num_pages, kv_heads, head_dim, page_size), dtype=dtype)
    v = torch.empty((num_pages, kv_heads, page_size, head_dim), dtype=dtype)
    handle = _kernels.pages(k.data_ptr(), v.data_ptr(), TYPES[dtype], num_pages, kv_heads, head_dim, page_size)
    return CpuPages(k, v, page_size, handle)
