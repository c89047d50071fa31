"""Tensors of 4-bit floats (e2m1): MXFP4's and NVFP4's blocks."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from quire.ops.layouts import Codebook, Layout
from quire.quant.formats import mxfp4 as mx
from quire.quant.formats import nvfp4 as nv
from quire.quant.tensors import finite
from quire.weights.errors import CheckpointError

_POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
TABLE = torch.tensor(_POSITIVE + tuple(-x for x in _POSITIVE))


def mxfp4(scheme: mx.Mxfp4Scheme, tensors: Mapping[str, torch.Tensor], outputs: int, inputs: int) -> Layout:
    scale = tensors[scheme.scales]
    if bool((scale == 255).any()):
        raise CheckpointError("The checkpoint is corrupt: a scale is no number.")
    return Codebook(_codes(tensors[scheme.codes], inputs), TABLE, scale, mx.BLOCK)


def nvfp4(scheme: nv.Nvfp4Scheme, tensors: Mapping[str, torch.Tensor], outputs: int, inputs: int) -> Layout:
    whole = tensors[scheme.whole].flatten()
    if bool((whole <= 0).any()):
        raise CheckpointError("The checkpoint is corrupt: a scale is not positive.")
    scale = tensors[".weight_scale"].float()
    scale = finite("a scale", scale / whole if scheme.divides else scale * whole)
    return Codebook(_codes(tensors[scheme.codes], inputs), TABLE, scale, nv.BLOCK)


def _codes(pairs: torch.Tensor, inputs: int) -> torch.Tensor:
    """``[N, K]`` codes, of which a byte holds two, the first in its low half."""
    return torch.stack((pairs & 15, pairs >> 4), dim=-1).reshape(-1, inputs)
