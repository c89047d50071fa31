"""Kernel layouts: the few shapes in which a linear layer's weights lie in memory.

``unpacked`` forms are what checkpoint readers produce and what the reference ops compute with. A backend packs them
once, at load, into the order its kernels read (``ops.pack``). Each has ``shape`` (N, K), ``dequantize()`` in float32,
and ``rows(index)``, the layer of some of its outputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from quire.ops.shapes import ActivationQuant

RowIndex = slice | torch.Tensor


@dataclass(frozen=True)
class Dense:
    """Plain weights ``[N, K]`` (out, in) in float32, float16 or bfloat16."""

    weight: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return (self.weight.shape[0], self.weight.shape[1])

    def dequantize(self) -> torch.Tensor:
        return self.weight.float()

    def rows(self, index: RowIndex) -> Dense:
        return Dense(self.weight[index])


@dataclass(frozen=True)
class GroupedInt:
    """Integers of 2 to 8 bits with a scale, and maybe a zero point or a minimum, for each ``group`` of inputs.

    ``w[n, order[k]] = scale * (q[n, k] - zero) + minimum``, where scale, zero and minimum are those of group
    ``k // group``. Integers come one a byte: 8 bits signed, fewer unsigned. ``zero`` is one number for all (half the
    range, of symmetric formats) or integers like q. Scales are float16 where that is exact, else float32.

    GGUF's super-blocks have scales of two levels: ``scale`` and ``minimum`` are then integers themselves, and
    ``super_scale`` and ``super_minimum`` (float16, each for several groups) multiply them.
    """

    q: torch.Tensor  # [N, K] uint8, or int8 (bits 8)
    scale: torch.Tensor  # [N, K // group] float16 | float32 | int8 | uint8
    minimum: torch.Tensor | None  # like scale
    bits: int
    group: int
    zero: int | torch.Tensor = 0  # [N, K // group], of q's type
    order: torch.Tensor | None = None  # [K] int64, a permutation: input k of q is input order[k] of the layer
    super_scale: torch.Tensor | None = None  # [N, K // group // n] float16
    super_minimum: torch.Tensor | None = None  # like super_scale

    @property
    def shape(self) -> tuple[int, int]:
        return (self.q.shape[0], self.q.shape[1])

    def one_level(self) -> GroupedInt:
        """The same weights with float32 scales and minimums of one level."""
        if self.super_scale is None:
            return self
        scale, minimum = _product(self.scale, self.super_scale), None
        if self.minimum is not None and self.super_minimum is not None:
            minimum = _product(self.minimum, self.super_minimum)
        return replace(self, scale=scale, minimum=minimum, super_scale=None, super_minimum=None)

    def dequantize(self) -> torch.Tensor:
        n, k = self.shape
        flat = self.one_level()
        w = self.q.float().view(n, k // self.group, self.group)
        w -= self.zero if isinstance(self.zero, int) else self.zero.float()[..., None]
        w *= flat.scale.float()[..., None]
        if flat.minimum is not None:
            w += flat.minimum.float()[..., None]
        w = w.view(n, k)
        if self.order is None:
            return w
        return torch.empty_like(w).index_copy_(1, self.order, w)

    def rows(self, index: RowIndex) -> GroupedInt:
        return replace(
            self,
            q=self.q[index],
            scale=self.scale[index],
            minimum=_cut(self.minimum, index),
            zero=self.zero if isinstance(self.zero, int) else self.zero[index],
            super_scale=_cut(self.super_scale, index),
            super_minimum=_cut(self.super_minimum, index),
        )


@dataclass(frozen=True)
class Codebook:
    """4-bit codes into a table of 16 numbers, with a scale for each ``group`` of inputs (nf4, fp4, mxfp4, iq4).

    ``w[n, k] = table[q[n, k]] * scale[n, k // group]``. A scale of type uint8 is an exponent: ``2 ** (scale - 127)``.
    One of type int8 is multiplied by the ``super_scale`` of its super-block.
    """

    q: torch.Tensor  # [N, K] uint8, 0 to 15
    table: torch.Tensor  # [16] float32
    scale: torch.Tensor  # [N, K // group] float32 | float16 | uint8 | int8
    group: int
    super_scale: torch.Tensor | None = None  # [N, K // group // n] float16

    @property
    def shape(self) -> tuple[int, int]:
        return (self.q.shape[0], self.q.shape[1])

    @property
    def float_scale(self) -> torch.Tensor:
        """The scales as float32, of one level."""
        if self.super_scale is not None:
            return _product(self.scale, self.super_scale)
        if self.scale.dtype != torch.uint8:
            return self.scale.float()
        return torch.ldexp(torch.ones_like(self.scale, dtype=torch.float32), self.scale.int() - 127)

    def dequantize(self) -> torch.Tensor:
        n, k = self.shape
        w = self.table[self.q.int()].view(n, k // self.group, self.group)
        return (w * self.float_scale[..., None]).view(n, k)

    def rows(self, index: RowIndex) -> Codebook:
        super_scale = _cut(self.super_scale, index)
        return replace(self, q=self.q[index], scale=self.scale[index], super_scale=super_scale)


@dataclass(frozen=True)
class Int8Channel:
    """8-bit integers with a scale for each output: ``w[n, k] = weight[n, k] * scale[n]``."""

    weight: torch.Tensor  # [N, K] int8
    scale: torch.Tensor  # [N] float32
    activation: ActivationQuant | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return (self.weight.shape[0], self.weight.shape[1])

    def dequantize(self) -> torch.Tensor:
        return self.weight.float() * self.scale[:, None]

    def rows(self, index: RowIndex) -> Int8Channel:
        return replace(self, weight=self.weight[index], scale=self.scale[index])


@dataclass(frozen=True)
class Fp8:
    """8-bit floats (e4m3) with a scale for each block of ``block`` (outputs, inputs).

    ``w[n, k] = weight[n, k] * scale[n // block[0], k // block[1]]``. One scale for the tensor is a block
    ``(N, K)``, one for each output ``(1, K)``.
    """

    weight: torch.Tensor  # [N, K] float8_e4m3fn
    scale: torch.Tensor  # [ceil(N / block[0]), ceil(K / block[1])] float32
    block: tuple[int, int]
    activation: ActivationQuant | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return (self.weight.shape[0], self.weight.shape[1])

    def row_scale(self) -> torch.Tensor:
        """The scales of every output: ``[N, ceil(K / block[1])]``."""
        return self.scale.repeat_interleave(self.block[0], dim=0)[: self.shape[0]]

    def dequantize(self) -> torch.Tensor:
        scale = self.row_scale().repeat_interleave(self.block[1], dim=1)[:, : self.shape[1]]
        return self.weight.float() * scale

    def rows(self, index: RowIndex) -> Fp8:
        """Cut between blocks, they stay; cut otherwise, each output gets scales of its own."""
        n, high = self.shape[0], self.block[0]
        weight = self.weight.view(torch.uint8)[index].view(torch.float8_e4m3fn)
        if isinstance(index, slice):
            start, stop, step = index.indices(n)
            if step == 1 and start % high == 0 and (stop % high == 0 or stop == n):
                scale = self.scale[start // high : -(-stop // high)]
                return replace(self, weight=weight, scale=scale, block=(min(high, stop - start), self.block[1]))
        return replace(self, weight=weight, scale=self.row_scale()[index], block=(1, self.block[1]))


Layout = Dense | GroupedInt | Codebook | Int8Channel | Fp8


def join(layouts: Iterable[Layout]) -> list[Layout]:
    """Neighbours that can be one layer laid end to end along their outputs, so that one call multiplies by all."""
    joined: list[Layout] = []
    for layout in layouts:
        pair = _join(joined[-1], layout) if joined else None
        if pair is None:
            joined.append(layout)
        else:
            joined[-1] = pair
    return joined


def _join(a: Layout, b: Layout) -> Layout | None:
    match a, b:
        case Dense(), Dense() if a.weight.dtype == b.weight.dtype:
            return Dense(_end_to_end(a.weight, b.weight))
        case GroupedInt(), GroupedInt() if _kind(a) == _kind(b) and _same(a.order, b.order):
            return _join_grouped(a, b)
        case Codebook(), Codebook() if _scaling(a) == _scaling(b) and torch.equal(a.table, b.table):
            super_scale = _cat(a.super_scale, b.super_scale)
            return replace(a, q=torch.cat([a.q, b.q]), scale=torch.cat([a.scale, b.scale]), super_scale=super_scale)
        case Int8Channel(), Int8Channel() if a.activation == b.activation:
            return replace(a, weight=torch.cat([a.weight, b.weight]), scale=torch.cat([a.scale, b.scale]))
        case Fp8(), Fp8() if a.activation == b.activation:
            return _join_fp8(a, b)
    return None


def _end_to_end(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    if a.is_meta:  # where only shapes count: torch.cat would import torch's compiler for them, a second
        return a.new_empty((a.shape[0] + b.shape[0], *a.shape[1:]))
    return torch.cat([a, b])


def _join_grouped(a: GroupedInt, b: GroupedInt) -> GroupedInt:
    zero = a.zero
    if isinstance(a.zero, torch.Tensor) and isinstance(b.zero, torch.Tensor):
        zero = torch.cat([a.zero, b.zero])
    return replace(
        a,
        q=torch.cat([a.q, b.q]),
        scale=torch.cat([a.scale, b.scale]),
        minimum=_cat(a.minimum, b.minimum),
        zero=zero,
        super_scale=_cat(a.super_scale, b.super_scale),
        super_minimum=_cat(a.super_minimum, b.super_minimum),
    )


def _join_fp8(a: Fp8, b: Fp8) -> Fp8 | None:
    (high_a, wide_a), (high_b, wide_b) = a.block, b.block
    wide = max(wide_a, wide_b)
    if a.shape[1] != b.shape[1] or (wide_a != wide_b and min(wide_a, wide_b) < a.shape[1]):
        return None
    weight = torch.cat([a.weight.view(torch.uint8), b.weight.view(torch.uint8)]).view(torch.float8_e4m3fn)
    if high_a == high_b and a.shape[0] % high_a == 0 and high_a < a.shape[0]:
        return replace(a, weight=weight, scale=torch.cat([a.scale, b.scale]))
    return replace(a, weight=weight, scale=torch.cat([a.row_scale(), b.row_scale()]), block=(1, wide))


def _kind(layout: GroupedInt) -> tuple[object, ...]:
    zero = layout.zero if isinstance(layout.zero, int) else "per group"
    return (layout.bits, layout.minimum is None, zero, *_scaling(layout))


def _scaling(layout: GroupedInt | Codebook) -> tuple[object, ...]:
    supers = None if layout.super_scale is None else layout.super_scale.shape[1]
    return (layout.group, layout.scale.dtype, supers)


def _same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))


def _cut(part: torch.Tensor | None, index: RowIndex) -> torch.Tensor | None:
    return None if part is None else part[index]


def _cat(a: torch.Tensor | None, b: torch.Tensor | None) -> torch.Tensor | None:
    return None if a is None or b is None else torch.cat([a, b])


def _product(small: torch.Tensor, super_: torch.Tensor) -> torch.Tensor:
    """Integers ``[N, G]`` times float16 ``[N, G / n]``, each for n integers, in float32."""
    return super_.float().repeat_interleave(small.shape[1] // super_.shape[1], dim=1) * small.float()
