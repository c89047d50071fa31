"""GPTQ's tensors: ``w[k, n] = scales[g, n] * (q[k, n] - zeros[g, n])`` with ``g = g_idx[k]``."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from quire.ops.layouts import Layout
from quire.quant.formats.gptq import GptqScheme
from quire.quant.grouped import Groups, grouped
from quire.quant.packing import unpack_bits

# 1 in each integer of a word, to undo version 1's subtraction (also where one borrowed from its neighbour).
_ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}


def layout(scheme: GptqScheme, tensors: Mapping[str, torch.Tensor], outputs: int, inputs: int) -> Layout:
    scales, index = tensors[".scales"], tensors.get(".g_idx")
    groups = Groups.even(inputs, scheme.group)
    if index is not None:
        groups = Groups.of_index(index, scales.shape[0], inputs, scheme.group)
    q = unpack_bits(tensors[".qweight"].T, scheme.bits, inputs)
    return grouped(q, scales.T, _zeros(scheme, tensors[".qzeros"], outputs).T, scheme.bits, groups)


def _zeros(scheme: GptqScheme, words: torch.Tensor, outputs: int) -> torch.Tensor:
    if not scheme.v1:
        return unpack_bits(words, scheme.bits, outputs)
    if scheme.bits not in _ONES:
        return (unpack_bits(words, scheme.bits, outputs) + 1) & ((1 << scheme.bits) - 1)
    return unpack_bits(words + _ONES[scheme.bits], scheme.bits, outputs)
