"""MXFP4: 4-bit floats (e2m1) in blocks of 32 that share a power of two, as gpt-oss stores its experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from quire.quant.formats.scheme import Part, Scheme, part
from quire.weights.checkpoint import Checkpoint
from quire.weights.errors import CheckpointError

BLOCK = 32


@dataclass(frozen=True)
class Mxfp4Scheme:
    """``codes`` and ``scales``: how the tensors' names end. Not ``flat``: blocks are a dimension of the codes."""

    codes: str
    scales: str
    flat: bool

    def parts(self, outputs: int, inputs: int) -> Mapping[str, Part]:
        if inputs % BLOCK:
            raise CheckpointError(f"MXFP4 has blocks of {BLOCK}, of which {inputs} inputs are no multiple.")
        blocks = inputs // BLOCK
        codes = (outputs, inputs // 2) if self.flat else (outputs, blocks, BLOCK // 2)
        return {
            self.codes: part(*codes, types=("U8",)),
            self.scales: part(outputs, blocks, types=("U8", "F8_E8M0")),
        }


GPT_OSS = Mxfp4Scheme("_blocks", "_scales", flat=False)
PACKED = Mxfp4Scheme(".weight_packed", ".weight_scale", flat=True)


def mxfp4_schemes(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Callable[[str], Scheme | None]:
    """The scheme of each module, ``None`` for a plain one."""
    return lambda module: GPT_OSS if module + GPT_OSS.codes in checkpoint.names() else None
