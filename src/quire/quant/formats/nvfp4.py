"""NVFP4: 4-bit floats (e2m1) in blocks of 16, each with an 8-bit float for a scale, and one more for the tensor.

Inputs, which these checkpoints would round to 4 bits too, stay as they are: that is more exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quire.quant.formats.scheme import Part, part
from quire.weights.errors import CheckpointError

BLOCK = 16


@dataclass(frozen=True)
class Nvfp4Scheme:
    """``codes``, ``whole`` (the tensor's scale): how names end. ``divides``: blocks' scales are divided by it."""

    codes: str
    whole: str
    divides: bool

    def parts(self, outputs: int, inputs: int) -> Mapping[str, Part]:
        if inputs % BLOCK:
            raise CheckpointError(f"NVFP4 has blocks of {BLOCK}, of which {inputs} inputs are no multiple.")
        return {
            self.codes: part(outputs, inputs // 2, types=("U8",)),
            ".weight_scale": Part(((outputs, inputs // BLOCK),), ("F8_E4M3",), floats=1),
            self.whole: Part(((1,), (), (1, 1)), ("F32",)),
        }


PACKED = Nvfp4Scheme(".weight_packed", ".weight_global_scale", divides=True)
MODELOPT = Nvfp4Scheme(".weight", ".weight_scale_2", divides=False)
