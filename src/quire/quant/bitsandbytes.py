"""bitsandbytes' tensors: 4-bit codes into a table, 8-bit integers.

The 8-bit form multiplies by exact inputs: bitsandbytes itself rounds them to 8 bits, but for columns with an entry
beyond ``llm_int8_threshold``, a loss that it takes for speed and that the checkpoint doesn't ask for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from quire.ops.layouts import Codebook, Int8Channel, Layout
from quire.quant.formats.bitsandbytes import EightBitScheme, FourBitScheme
from quire.quant.tensors import finite
from quire.weights.errors import CheckpointError


def four_bit(scheme: FourBitScheme, tensors: Mapping[str, torch.Tensor], outputs: int, inputs: int) -> Layout:
    octets = tensors[".weight"].view(torch.uint8).flatten()
    if len(octets) * 2 != outputs * inputs:
        raise CheckpointError(f"Its {len(octets)} bytes of codes are not {outputs} x {inputs} weights.")
    q = torch.stack((octets >> 4, octets & 15), dim=1).view(outputs, inputs)
    scale, group = _scales(scheme, tensors), math.gcd(inputs, scheme.block)
    # Blocks run on from row to row; pieces that both rows and blocks are made of have one scale each.
    scale = scale.repeat_interleave(scheme.block // group)[: outputs * inputs // group].view(outputs, -1)
    return Codebook(q, finite("the table", tensors[".weight.quant_map"]), finite("a scale", scale), group)


def _scales(scheme: FourBitScheme, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    absmax = tensors[".weight.absmax"]
    if not scheme.nested_block:
        return absmax
    scale = tensors[".weight.nested_absmax"].repeat_interleave(scheme.nested_block)[: len(absmax)]
    return tensors[".weight.nested_quant_map"][absmax.int()] * scale + scheme.nested_offset


def eight_bit(scheme: EightBitScheme, tensors: Mapping[str, torch.Tensor], outputs: int, inputs: int) -> Layout:
    return Int8Channel(tensors[".weight"], finite("SCB", tensors[".SCB"]) / 127)
