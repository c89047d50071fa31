"""Quantised weights in the order that the kernels read, made once, at load, on the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch

from quire.ops.layouts import Codebook, Fp8, GroupedInt, Int8Channel, Layout
from quire.ops.shapes import ActivationQuant

_PLANES = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2)}  # bits of each plane, the lowest first
_WORDS = {4: torch.int32, 2: torch.int16, 1: torch.int8}
PLANES_BLOCK = 128  # inputs that 16 words of a plane hold
# Input of each field of a block's words [16, 8]: thread j % 4 holds it in the left operand of a product. Pairs of
# neighbours, 8 apart; a pair's second is four fields on.
FIELDS = [[32 * (j // 4) + 16 * (f % 4 // 2) + 8 * (f % 2) + 2 * (j % 4) + f // 4 for f in range(8)] for j in range(16)]
_MAGIC = {torch.bfloat16: (0x4300, 128.0), torch.float16: (0x6400, 1024.0), torch.float32: (0, 0.0)}
BLOCK = 256  # inputs at most that kernels take between two looks at the scales
MIN_GROUP = 16  # the least inputs of a product on the tensor cores
AnyLayout = TypeVar("AnyLayout", bound=Layout)


@dataclass(frozen=True)
class PlanesWeight:
    """Numbers of 2 to 6 bits, as ``planes`` says. ``shape``: of all matrices of a stack together."""

    shape: tuple[int, int]
    bits: int
    kind: int  # planes.ZERO, MINIMUM or TABLE
    magic: tuple[int, float]  # bits and value of the float that a field is added to
    base: float  # what is taken off that sum, where a constant is
    group: int
    planes: tuple[torch.Tensor, ...]
    # [groups, N, 1], or of groups smaller than a block [blocks, N, groups in one]: pairs of (scale, zero or minimum) in
    # the dtype of activations, 16-bit ones as one int32 with the scale in its low half.
    meta: torch.Tensor
    table: torch.Tensor | None = None  # [16] float32
    table_bytes: tuple[int, ...] | None = None  # 8 words: low bytes of the 16 entries in 16 bits, then the high ones
    order: torch.Tensor | None = None  # of inputs: [K], or [matrices, K] int32 of a stack

    @property
    def nbytes(self) -> int:
        return sum(plane.nbytes for plane in self.planes) + self.meta.nbytes + _nbytes(self.order)

    @property
    def plain(self) -> bool:
        """Of 4 bits without a table: weights that widen with fewest instructions."""
        return self.bits == 4 and self.table is None

    @property
    def block_bytes(self) -> int:
        """Of a block of one output: the planes' words, and scales and zeros."""
        words = sum(plane.itemsize for plane in self.planes) * 16
        return words + self.meta.itemsize * max(1, PLANES_BLOCK // self.group)

    def plane(self, bits: int) -> torch.Tensor:
        """The plane of so many bits; any where there is none."""
        return next((p for p in self.planes if p.dtype is _WORDS[bits]), self.planes[0])


@dataclass(frozen=True)
class OctetsWeight:
    """8-bit integers or floats ``[N, K]``, with a float32 scale (and offset) for each ``group`` of inputs.

    ``w = q * scale + offset``; scales are ``[groups, N]``. ``activation``: how inputs are rounded, to be multiplied in
    8 bits; then ``sums [N]`` are those of the integers, for inputs with a zero point.
    """

    q: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor | None
    group: int
    activation: ActivationQuant | None = None
    sums: torch.Tensor | None = None
    order: torch.Tensor | None = None  # as in ``PlanesWeight``

    @property
    def shape(self) -> tuple[int, int]:
        return (self.q.shape[0], self.q.shape[1])

    @property
    def nbytes(self) -> int:
        return self.q.nbytes + self.scale.nbytes + _nbytes(self.offset, self.sums, self.order)


NarrowWeight = PlanesWeight | OctetsWeight


def _nbytes(*tensors: torch.Tensor | None) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def stacked(parts: Sequence[NarrowWeight]) -> NarrowWeight | None:
    """Matrices as one weight, their outputs one after another; ``None`` where they differ in more than numbers."""
    planes = [part for part in parts if isinstance(part, PlanesWeight)]
    octets = [part for part in parts if isinstance(part, OctetsWeight)]
    if planes and octets:
        return None
    return _stacked_planes(planes) if planes else _stacked_octets(octets)


def _stacked_planes(parts: Sequence[PlanesWeight]) -> PlanesWeight | None:
    first = parts[0]
    kinds = {(p.shape, p.bits, p.kind, p.base, p.group, p.order is None) for p in parts}
    tables = [p.table for p in parts if p.table is not None]
    if len(kinds) > 1 or any(not torch.equal(t, tables[0]) for t in tables):
        return None
    planes = tuple(torch.cat(plane, dim=1) for plane in zip(*(p.planes for p in parts), strict=True))
    shape = (len(parts) * first.shape[0], first.shape[1])
    meta = torch.cat([p.meta for p in parts], dim=1)
    return replace(first, shape=shape, planes=planes, meta=meta, order=_stacked_orders(parts))


def _stacked_octets(parts: Sequence[OctetsWeight]) -> OctetsWeight | None:
    """Where inputs would be rounded otherwise for each matrix, they stay as they are."""
    first = parts[0]
    kinds = {(p.shape, p.q.dtype, p.scale.shape, p.group, p.offset is None, p.order is None) for p in parts}
    if len(kinds) > 1:
        return None
    q = torch.cat([p.q.view(torch.uint8) for p in parts]).view(first.q.dtype)
    scale = torch.cat([p.scale for p in parts], dim=1)
    offsets = [p.offset for p in parts if p.offset is not None]
    offset = torch.cat(offsets, dim=1) if offsets else None
    how = first.activation if all(p.activation == first.activation for p in parts) else None
    sums = [p.sums for p in parts if how is not None and p.sums is not None]
    return OctetsWeight(
        q, scale, offset, first.group, how, torch.cat(sums) if sums else None, order=_stacked_orders(parts)
    )


def _stacked_orders(parts: Sequence[NarrowWeight]) -> torch.Tensor | None:
    orders = [p.order.int() for p in parts if p.order is not None]
    return torch.stack(orders) if orders else None


def moved(layout: AnyLayout, device: torch.device) -> AnyLayout:
    """The layout with its tensors on ``device``."""
    tensors = {f.name: v for f in fields(layout) if isinstance(v := getattr(layout, f.name), torch.Tensor)}
    moves: dict[str, Any] = {name: tensor.to(device) for name, tensor in tensors.items()}
    return replace(layout, **moves)


def packed(layout: Layout, dtype: torch.dtype) -> NarrowWeight | None:
    """``layout`` for activations of ``dtype``; ``None`` where only plain weights will do."""
    match layout:
        case GroupedInt() if layout.bits in _PLANES:
            return _grouped(layout.one_level(), dtype)
        case GroupedInt():
            return _grouped_octets(layout.one_level())
        case Codebook():
            return _codebook(layout, dtype)
        case Int8Channel():
            return _int8(layout)
        case Fp8():
            return _fp8(layout)
    return None


def _grouped(layout: GroupedInt, dtype: torch.dtype) -> PlanesWeight | None:
    from quire.ops.triton.planes import MINIMUM, ZERO

    n, k = layout.shape
    group = kernel_group(layout.group)
    if group < MIN_GROUP or (layout.minimum is not None and isinstance(layout.zero, torch.Tensor)):
        return None
    magic = _MAGIC[dtype]
    base, kind = 0.0, ZERO.value
    if isinstance(layout.zero, torch.Tensor):
        second = layout.zero.float() + magic[1]
    else:
        base, kind = layout.zero + magic[1], MINIMUM.value
        second = torch.zeros_like(layout.scale) if layout.minimum is None else layout.minimum
    planes = _planes(layout.q, layout.bits)
    meta = _meta(layout.scale, second, dtype, k, group)
    return PlanesWeight((n, k), layout.bits, kind, magic, base, group, planes, meta, order=layout.order)


def _codebook(layout: Codebook, dtype: torch.dtype) -> PlanesWeight | None:
    from quire.ops.triton.planes import TABLE

    n, k = layout.shape
    group = kernel_group(layout.group)
    if group < MIN_GROUP:
        return None
    planes = _planes(layout.q, 4)
    scale = layout.float_scale
    meta = _meta(scale, torch.zeros_like(scale), dtype, k, group)
    table_bytes = None
    if dtype.itemsize == 2:
        halves = layout.table.to(dtype).view(torch.uint8).view(16, 2)
        table_bytes = tuple(word & 0xFFFFFFFF for word in halves.T.contiguous().view(torch.int32).flatten().tolist())
    table = layout.table.float()
    return PlanesWeight((n, k), 4, TABLE.value, _MAGIC[dtype], 0.0, group, planes, meta, table, table_bytes)


def _planes(q: torch.Tensor, bits: int) -> tuple[torch.Tensor, ...]:
    """The planes of ``q [N, K] uint8``."""
    n, k = q.shape
    q = torch.nn.functional.pad(q, (0, -k % PLANES_BLOCK))
    fields = torch.tensor(FIELDS, device=q.device)
    blocks = q.view(n, -1, PLANES_BLOCK).transpose(0, 1)[:, :, fields]  # [blocks, N, word, field]
    planes, low = [], 0
    for size in _PLANES[bits]:
        words = torch.zeros(blocks.shape[:3], dtype=_WORDS[size], device=q.device)
        for i in range(8):
            part = (blocks[..., i] >> low) & ((1 << size) - 1)
            words |= (part.to(torch.int32) << (size * i)).to(words.dtype)
        planes.append(words)
        low += size
    return tuple(planes)


def _meta(scale: torch.Tensor, second: torch.Tensor, dtype: torch.dtype, k: int, group: int) -> torch.Tensor:
    """Of ``scale`` and ``second [N, K / layout's group]``, for groups of ``group`` inputs: ``PlanesWeight.meta``."""
    n = len(scale)
    here = max(1, PLANES_BLOCK // group)
    groups = -(-(k + -k % PLANES_BLOCK) // group)
    pairs = torch.stack((scale.float(), second.float()), dim=2).repeat_interleave(k // group // scale.shape[1], dim=1)
    pairs = torch.nn.functional.pad(pairs, (0, 0, 0, groups - pairs.shape[1])).view(n, -1, here, 2).transpose(0, 1)
    pairs = pairs.to(dtype).contiguous()
    return pairs if dtype is torch.float32 else pairs.view(torch.int32).squeeze(3)


def _grouped_octets(layout: GroupedInt) -> OctetsWeight | None:
    group = kernel_group(layout.group)
    if group < MIN_GROUP:
        return None
    scale = layout.scale.float()
    zero = layout.zero if isinstance(layout.zero, int) else layout.zero.float()
    offset: torch.Tensor | None = None
    if not isinstance(zero, int) or zero or layout.minimum is not None:
        offset = -zero * scale
        if layout.minimum is not None:
            offset += layout.minimum.float()
    q = layout.q.view(torch.int8) if layout.bits == 8 else layout.q.to(torch.int8)
    copies = layout.group // group
    return OctetsWeight(
        q, _turned(scale, copies), None if offset is None else _turned(offset, copies), group, order=layout.order
    )


def _int8(layout: Int8Channel) -> OctetsWeight:
    how, sums = layout.activation, None
    if how is not None and (how.zero or not how.symmetric):
        sums = layout.weight.sum(dim=1, dtype=torch.int32)
    return OctetsWeight(layout.weight.contiguous(), layout.scale.float()[None], None, layout.shape[1], how, sums)


def _fp8(layout: Fp8) -> OctetsWeight | None:
    k, wide = layout.shape[1], min(layout.block[1], layout.shape[1])
    scale = layout.row_scale().float()
    group = wide if wide == k else kernel_group(wide)
    if group < 32:
        return None
    return OctetsWeight(layout.weight.contiguous(), _turned(scale, wide // group), None, group, layout.activation)


def _turned(scale: torch.Tensor, copies: int) -> torch.Tensor:
    return scale.repeat_interleave(copies, dim=1).T.contiguous()


def kernel_group(group: int) -> int:
    """Inputs that the kernels give one scale: whole blocks, or else the largest power of two that divides group."""
    return group if group % BLOCK == 0 else math.gcd(group, BLOCK)
