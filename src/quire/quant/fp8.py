"""Tensors of 8-bit floats, and the scales of their inputs."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from quire.ops.layouts import Fp8, Layout
from quire.ops.shapes import ActivationQuant
from quire.quant.formats.fp8 import Fp8Scheme
from quire.quant.tensors import finite
from quire.weights.errors import CheckpointError


def layout(scheme: Fp8Scheme, tensors: Mapping[str, torch.Tensor], outputs: int, inputs: int) -> Layout:
    weight, scale = tensors[".weight"], tensors[scheme.scale]
    if bool((weight.view(torch.uint8) & 127 == 127).any()):
        raise CheckpointError("The checkpoint is corrupt: a weight is no number.")
    if scale.dtype == torch.uint8:
        scale = torch.ldexp(torch.ones_like(scale, dtype=torch.float32), scale.int() - 127)
    scale, block = finite("a scale", scale.float()), scheme.block
    if block is None:
        block = (outputs, inputs) if scale.numel() == 1 else (1, inputs)
        scale = scale.reshape(-1, 1)
    return Fp8(weight, scale, block, _activation(scheme, tensors))


def _activation(scheme: Fp8Scheme, tensors: Mapping[str, torch.Tensor]) -> ActivationQuant | None:
    if scheme.static:
        return ActivationQuant("fp8", scale=positive(tensors[scheme.static]))
    return scheme.dynamic


def positive(scale: torch.Tensor) -> float:
    """The one number of a tensor. Raises ``CheckpointError`` where it is no scale."""
    value = float(finite("an input_scale", scale).max())
    if value <= 0:
        raise CheckpointError(f"The checkpoint is corrupt: an input_scale is {value}.")
    return value
