"""Layouts as the kernels' elements: the code of each, groups that suit the kernels, what becomes of the inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch

from quire.ops.layouts import Codebook, Fp8, GroupedInt, Int8Channel
from quire.ops.shapes import ActivationQuant

# csrc/weights.h: Type, Code, Second, Inputs::Rounding
TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int8: 3, torch.uint8: 4}
_E8M0 = 5
_INT8, _TABLE4, _FLOAT8 = 8, 14, 18
_STEPS = {2: 16, 3: 32, 4: 8, 5: 32, 6: 16}  # inputs that integers of so many bits take at a time: groups are multiples
_STEP = 8
_MAX_GROUP = 256
_NONE, _MINIMUM, _ZERO = 0, 1, 2
_ROUNDINGS = {"int8": 1, "fp8": 2}
_BY_GROUP = 3
_FLOAT8_FACTOR = 256.0  # the kernels read an e4m3 float as 1/256 of it


@dataclass(frozen=True)
class Rounding:
    """What is done to the inputs of a layer."""

    facts: tuple[int, float, float, int, int] = (0, 0.0, 0.0, 0, 1)

    @classmethod
    def of(cls, how: ActivationQuant | None) -> Rounding:
        if how is None:
            return cls()
        return cls((_ROUNDINGS[how.kind], how.scale or 0.0, float(how.zero), how.group or 0, int(how.symmetric)))


@dataclass(frozen=True)
class Elements:
    """``w = scale * (q - zero) + minimum``; all tensors contiguous."""

    code: int
    q: torch.Tensor  # [N, K], a byte each
    group: int
    scale: torch.Tensor  # [N, K // group]
    scale_type: int | None = None  # where it isn't that of the tensor
    second_kind: int = _NONE
    second: torch.Tensor | None = None  # minimums or zeros, like scale
    zero: int = 0
    super_scale: torch.Tensor | None = None
    super_second: torch.Tensor | None = None
    table: torch.Tensor | None = None
    order: torch.Tensor | None = None
    rounding: Rounding = field(default_factory=Rounding)

    def with_int8_inputs(self) -> Elements:
        """Where inputs are not rounded anyway; kernels that would not be faster ignore it."""
        if self.rounding != Rounding():
            return self
        return replace(self, rounding=Rounding((_BY_GROUP, *Rounding().facts[1:])))


def elements_of(layout: GroupedInt | Codebook | Int8Channel | Fp8) -> Elements | Rounding:
    """The elements of a layout; where no kernel takes its groups, only the rounding of its inputs.

    Raises ``ValueError`` for tensors that don't make up a layout.
    """
    match layout:
        case GroupedInt():
            return _grouped(layout)
        case Codebook():
            return _codebook(layout)
        case Int8Channel():
            return _int8(layout)
        case Fp8():
            return _fp8(layout)


def _grouped(layout: GroupedInt) -> Elements | Rounding:
    _check_grouped(layout)
    code, group = _code_and_group(layout.bits, layout.group)
    if not group:
        return Rounding()
    zero, second, kind = layout.zero, layout.minimum, _NONE if layout.minimum is None else _MINIMUM
    if isinstance(zero, torch.Tensor):
        if second is not None:
            raise ValueError("A grouped weight has minimums or zeros, not both.")
        second, zero, kind = zero, 0, _ZERO
    copies = layout.group // group
    return Elements(
        code,
        layout.q.contiguous(),
        group,
        _spread(layout.scale, copies),
        second_kind=kind,
        second=None if second is None else _spread(second, copies),
        zero=zero,
        super_scale=None if layout.super_scale is None else layout.super_scale.contiguous(),
        super_second=None if layout.super_minimum is None else layout.super_minimum.contiguous(),
        order=None if layout.order is None else layout.order.int().contiguous(),
    )


def _codebook(layout: Codebook) -> Elements | Rounding:
    _check_shape("scale", layout.scale, layout.shape, layout.group)
    group = _kernel_group(layout.group, _STEP)
    if not group:
        return Rounding()
    return Elements(
        _TABLE4,
        layout.q.contiguous(),
        group,
        _spread(layout.scale, layout.group // group),
        scale_type=_E8M0 if layout.scale.dtype == torch.uint8 else None,
        super_scale=None if layout.super_scale is None else layout.super_scale.contiguous(),
        table=layout.table.float().contiguous(),
    )


def _int8(layout: Int8Channel) -> Elements | Rounding:
    rounding, group = Rounding.of(layout.activation), _kernel_group(layout.shape[1], _STEP)
    if not group:
        return rounding
    scale = _spread(layout.scale.float()[:, None], layout.shape[1] // group)
    return Elements(_INT8, layout.weight.contiguous(), group, scale, rounding=rounding)


def _fp8(layout: Fp8) -> Elements | Rounding:
    inputs, wide = layout.shape[1], min(layout.block[1], layout.shape[1])
    rounding = Rounding.of(layout.activation)
    # The last block may be narrower: groups must divide it, too.
    group = _kernel_group(wide if inputs % wide == 0 else math.gcd(inputs, wide), _STEP)
    if not group:
        return rounding
    scale = _spread(layout.row_scale().float() * _FLOAT8_FACTOR, wide // group)[:, : inputs // group].contiguous()
    return Elements(_FLOAT8, layout.weight.contiguous(), group, scale, rounding=rounding)


def _code_and_group(bits: int, group: int) -> tuple[int, int]:
    """The narrowest code that takes integers of ``bits`` bits in parts of such groups."""
    for code, step in _STEPS.items():
        if bits <= code and (kernel_group := _kernel_group(group, step)):
            return code, kernel_group
    return _INT8, _kernel_group(group, _STEP)


def _kernel_group(group: int, step: int) -> int:
    """The largest part of a group that is whole steps of a kernel and not too large; 0: there is none."""
    parts = (size for size in range(min(_MAX_GROUP, group) // step * step, 0, -step) if group % size == 0)
    return next(parts, 0)


def _spread(x: torch.Tensor, copies: int) -> torch.Tensor:
    return x.contiguous() if copies == 1 else x.repeat_interleave(copies, dim=1)


def _check_grouped(layout: GroupedInt) -> None:
    if not 2 <= layout.bits <= 8:
        raise ValueError(f"Grouped weights must have 2 to 8 bits, not {layout.bits}.")
    wanted = torch.int8 if layout.bits == 8 else torch.uint8
    if layout.q.dtype != wanted:
        raise ValueError(f"Grouped weights of {layout.bits} bits must come as {wanted}, not {layout.q.dtype}.")
    scales = (torch.int8, torch.uint8) if layout.super_scale is not None else (torch.float32, torch.float16)
    for name, part in (("scale", layout.scale), ("minimum", layout.minimum)):
        if part is not None:
            _check_shape(name, part, layout.shape, layout.group)
            if part.dtype not in scales:
                raise ValueError(
                    f"The {name} of a grouped weight must be {scales[0]} or {scales[1]}, not {part.dtype}."
                )
    if layout.minimum is not None and layout.minimum.dtype != layout.scale.dtype:
        raise ValueError("The scale and the minimum of a grouped weight must have one type.")
    if isinstance(layout.zero, torch.Tensor):
        _check_shape("zero", layout.zero, layout.shape, layout.group)
        if layout.zero.dtype != wanted:
            raise ValueError(f"The zeros of a grouped weight must come as {wanted}, not {layout.zero.dtype}.")
    for part in (layout.super_scale, layout.super_minimum):
        if part is not None and (part.dtype != torch.float16 or layout.scale.shape[1] % part.shape[1]):
            raise ValueError("The scales of super-blocks must be float16, each for as many groups.")


def _check_shape(name: str, part: torch.Tensor, shape: tuple[int, int], group: int) -> None:
    n, k = shape
    if group <= 0 or k % group:
        raise ValueError(f"The {k} inputs of a grouped weight must be a multiple of its group, {group}.")
    if tuple(part.shape) != (n, k // group):
        raise ValueError(f"The {name} must have shape {(n, k // group)}, not {tuple(part.shape)}.")
