"""compressed-tensors' integers.

Packed ones are offset binary, lowest bits first: ``w[n, k] = weight_scale[n, g] * (q[n, k] - zero[n, g])``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from quire.ops.layouts import Int8Channel, Layout
from quire.ops.shapes import ActivationQuant
from quire.quant.formats.compressed_tensors import Int8Scheme, PackedScheme
from quire.quant.formats.sizes import group_count
from quire.quant.fp8 import positive
from quire.quant.grouped import Groups, grouped
from quire.quant.packing import unpack_bits
from quire.quant.tensors import finite
from quire.weights.errors import CheckpointError


def packed(scheme: PackedScheme, tensors: Mapping[str, torch.Tensor], outputs: int, inputs: int) -> Layout:
    if (shape := tensors.get(".weight_shape")) is not None and shape.tolist() != [outputs, inputs]:
        raise CheckpointError(f"Its weight_shape is {shape.tolist()}; the config calls for {[outputs, inputs]}.")
    size, index = scheme.group or -1, tensors.get(".weight_g_idx")
    scale = tensors[".weight_scale"].reshape(-1, group_count(inputs, size))
    groups = Groups.even(inputs, size)
    if index is not None and bool((index >= 0).any()):  # -1 throughout: not used
        groups = Groups.of_index(index, scale.shape[1], inputs, size)
    q = unpack_bits(tensors[".weight_packed"], scheme.bits, inputs)
    zero = None if scheme.symmetric else _zero(scheme, tensors[".weight_zero_point"], scale)
    if zero is not None:
        zero = zero.expand(outputs, -1)
    return grouped(q, scale.expand(outputs, -1), zero, scheme.bits, groups)


def _zero(scheme: PackedScheme, zero: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    if zero.shape == scale.shape and zero.dtype != torch.int32:
        return (zero + (1 << (scheme.bits - 1))).to(torch.uint8)
    return unpack_bits(zero.T, scheme.bits, scale.shape[0]).T


def int8(scheme: Int8Scheme, tensors: Mapping[str, torch.Tensor], outputs: int, inputs: int) -> Layout:
    scale = finite("a scale", tensors[".weight_scale"].float()).flatten().expand(outputs).contiguous()
    return Int8Channel(tensors[".weight"], scale, _activation(scheme, tensors))


def _activation(scheme: Int8Scheme, tensors: Mapping[str, torch.Tensor]) -> ActivationQuant | None:
    if not scheme.static:
        return scheme.activation
    zero = int(tensors[".input_zero_point"].max()) if ".input_zero_point" in tensors else 0
    if not -128 <= zero <= 127:
        raise CheckpointError(f"The checkpoint is corrupt: an input_zero_point is {zero}.")
    return ActivationQuant("int8", positive(tensors[".input_scale"]), zero)
