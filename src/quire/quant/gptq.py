"""GPTQ checkpoints: 2, 3, 4 or 8 bits (AutoRound's: 2 to 8) packed along the inputs.

``w[k, n] = scales[g, n] * (q[k, n] - zeros[g, n])`` with ``g = g_idx[k]``. Version 1 files store the zeros less 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from quire.ops.layouts import Layout
from quire.quant.grouped import Groups, group_count, grouped
from quire.quant.packing import packed_words, unpack_bits
from quire.quant.patterns import compiled, matches
from quire.quant.scheme import Part, Scheme, Settings, part
from quire.weights.checkpoint import Checkpoint
from quire.weights.errors import CheckpointError

BITS = (2, 3, 4, 8)
# 1 in each integer of a word, to undo version 1's subtraction (also where one borrowed from its neighbour).
_ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}


@dataclass(frozen=True)
class GptqScheme:
    bits: int
    group: int  # -1: one for all inputs
    v1: bool

    def parts(self, outputs: int, inputs: int) -> Mapping[str, Part]:
        if inputs * self.bits % 32 or outputs * self.bits % 32:
            raise CheckpointError(
                f"GPTQ packs integers of {self.bits} bits into whole 32-bit words, which {outputs} outputs and "
                f"{inputs} inputs don't fill."
            )
        groups = group_count(inputs, self.group)
        return {
            ".qweight": part(packed_words(inputs, self.bits), outputs, types=("I32",)),
            ".qzeros": part(groups, packed_words(outputs, self.bits), types=("I32",)),
            ".scales": part(groups, outputs),
            ".g_idx": part(inputs, types=("I32", "I64"), optional=True),
        }

    def layout(self, tensors: Mapping[str, torch.Tensor], outputs: int, inputs: int) -> Layout:
        scales, index = tensors[".scales"], tensors.get(".g_idx")
        groups = Groups.even(inputs, self.group)
        if index is not None:
            groups = Groups.of_index(index, scales.shape[0], inputs, self.group)
        q = unpack_bits(tensors[".qweight"].T, self.bits, inputs)
        return grouped(q, scales.T, self._zeros(tensors[".qzeros"], outputs).T, self.bits, groups)

    def _zeros(self, words: torch.Tensor, outputs: int) -> torch.Tensor:
        if not self.v1:
            return unpack_bits(words, self.bits, outputs)
        if self.bits not in _ONES:
            return (unpack_bits(words, self.bits, outputs) + 1) & ((1 << self.bits) - 1)
        return unpack_bits(words + _ONES[self.bits], self.bits, outputs)


def gptq_schemes(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Callable[[str], Scheme | None]:
    """The scheme of each module, ``None`` for a plain one. Raises ``CheckpointError`` for unknown settings."""
    settings = Settings("GPTQ", config)
    v1 = settings.one_of("checkpoint_format", "gptq", ("gptq", "gptq_v2")) == "gptq"
    dynamic = settings.group("dynamic").values
    for pattern in dynamic:
        compiled(_expression(pattern))

    def scheme_of(module: str) -> Scheme | None:
        if module + ".qweight" not in checkpoint.names():
            return None
        override = next((dynamic[p] for p in dynamic if p[:2] != "-:" and matches(_expression(p), module)), None)
        return _scheme(Settings("GPTQ", {**config, **(override or {})}), v1)

    _scheme(settings, v1)
    return scheme_of


def _expression(pattern: str) -> str:
    """The regular expression of a ``dynamic`` entry: ``+:`` (or nothing) overrides, ``-:`` leaves unquantised."""
    return pattern[2:] if pattern[:2] in ("+:", "-:") else pattern


def _scheme(settings: Settings, v1: bool) -> GptqScheme:
    return GptqScheme(settings.one_of("bits", None, BITS), settings.group_size(-1), v1)
