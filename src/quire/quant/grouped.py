"""What formats of grouped integers share: groups of inputs, scales and zero points, made into a kernel layout."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from quire.ops.layouts import GroupedInt, Int8Channel
from quire.quant.tensors import finite
from quire.weights.errors import CheckpointError

MIN_GROUP = 8  # smaller groups of inputs are found in no checkpoint, and serve no kernel


@dataclass(frozen=True)
class Groups:
    """Inputs, in ``order``, in even groups of ``size``; group i has the scales of column ``columns[i]``."""

    size: int
    columns: torch.Tensor
    order: torch.Tensor | None

    @classmethod
    def even(cls, inputs: int, size: int) -> Groups:
        """Neighbours in groups of ``size`` (-1: one for all); the last may be smaller."""
        size = inputs if size == -1 or size > inputs else size
        common = math.gcd(inputs, size)
        return cls(common, torch.arange(0, inputs, common) // size, None)

    @classmethod
    def of_index(cls, index: torch.Tensor, groups: int, inputs: int, size: int) -> Groups:
        """Groups where ``index [inputs]`` names each input's. Raises ``CheckpointError`` for one that is not there."""
        index = index.long()
        if int(index.min()) < 0 or int(index.max()) >= groups:
            raise CheckpointError(f"The checkpoint is corrupt: its g_idx names more than the {groups} groups.")
        even = cls.even(inputs, size)
        if torch.equal(index, even.columns.repeat_interleave(even.size)):
            return even
        order = torch.argsort(index, stable=True)
        sorted_ = index[order]
        starts = (sorted_[1:] != sorted_[:-1]).nonzero().flatten() + 1
        common = math.gcd(inputs, *starts.tolist())
        if common < min(MIN_GROUP, even.size):
            raise CheckpointError("The checkpoint is corrupt: its g_idx makes groups of uneven sizes.")
        return cls(common, sorted_[::common], order)


def grouped(
    q: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, bits: int, groups: Groups
) -> GroupedInt | Int8Channel:
    """A layout of ``q [N, K] uint8``, ``scale`` and ``zero [N, columns]``, all unsigned; no zero: half the range."""
    scale = exact_scale(finite("a scale", scale.index_select(1, groups.columns)))
    half = 1 << (bits - 1)
    if zero is not None:
        zero = None if bool((zero == half).all()) else zero.index_select(1, groups.columns)
    if groups.order is not None:
        q = q.index_select(1, groups.order)
    if bits < 8:
        return GroupedInt(q, scale, None, bits, groups.size, half if zero is None else zero, groups.order)
    q = (q ^ half).view(torch.int8)  # from unsigned with 128 for 0 to signed
    if zero is None and groups.size == q.shape[1] and groups.order is None:
        return Int8Channel(q, scale.float().flatten())
    signed = 0 if zero is None else (zero ^ half).view(torch.int8)
    return GroupedInt(q, scale, None, bits, groups.size, signed, groups.order)


def exact_scale(scale: torch.Tensor) -> torch.Tensor:
    """In float16 where that is exact, else in float32."""
    half = scale.to(torch.float16)
    return half if scale.dtype == torch.float16 or torch.equal(half.float(), scale.float()) else scale.float()
