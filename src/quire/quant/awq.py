"""AWQ's tensors: ``w[k, n] = scales[g, n] * (q[k, n] - zeros[g, n])``, where ``g = k // group_size``."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from quire.ops.layouts import Layout
from quire.quant.formats.awq import AwqScheme
from quire.quant.grouped import Groups, grouped
from quire.quant.packing import unpack_awq


def layout(scheme: AwqScheme, tensors: Mapping[str, torch.Tensor], outputs: int, inputs: int) -> Layout:
    zeros = unpack_awq(tensors[".qzeros"]).T if ".qzeros" in tensors else None
    q = unpack_awq(tensors[".qweight"]).T.contiguous()
    return grouped(q, tensors[".scales"].T, zeros, 4, Groups.even(inputs, scheme.group))
