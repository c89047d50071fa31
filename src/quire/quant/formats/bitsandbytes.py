"""bitsandbytes checkpoints: 4-bit codes into a table (nf4, fp4), and 8-bit integers with a scale for each output."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from quire.quant.formats.scheme import Part, Scheme, Settings, part
from quire.weights.checkpoint import Checkpoint
from quire.weights.errors import CheckpointError

_STATE = ".weight.quant_state.bitsandbytes__"
_KINDS = ("nf4", "fp4")
_BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_MAX_STATE = 1 << 16
_STORAGE = {"U8": 1, "I8": 1, "F16": 2, "BF16": 2, "F32": 4}  # types that the codes may be disguised as: bytes each


@dataclass(frozen=True)
class FourBitScheme:
    """``block`` codes share a scale; ``nested``: scales are codes themselves, ``nested_block`` of them to a scale."""

    block: int
    nested_block: int | None
    nested_offset: float

    def parts(self, outputs: int, inputs: int) -> Mapping[str, Part]:
        if outputs * inputs % 2:
            raise CheckpointError(f"Pairs of 4-bit codes can't hold {outputs} x {inputs} weights.")
        codes, blocks = outputs * inputs // 2, -(-outputs * inputs // self.block)
        shapes = {(codes // size, 1): kind for kind, size in _STORAGE.items() if codes % size == 0}
        parts = {
            ".weight": Part(tuple(shapes), tuple(_STORAGE)),
            ".weight.absmax": part(blocks, types=("F32",)),
            ".weight.quant_map": part(16, types=("F32",)),
        }
        if self.nested_block:
            parts[".weight.absmax"] = Part(((blocks,),), ("U8",), floats=1)  # looked up
            parts[".weight.nested_absmax"] = part(-(-blocks // self.nested_block), types=("F32",))
            parts[".weight.nested_quant_map"] = part(256, types=("F32",))
        return parts


@dataclass(frozen=True)
class EightBitScheme:
    def parts(self, outputs: int, inputs: int) -> Mapping[str, Part]:
        return {".weight": part(outputs, inputs, types=("I8",)), ".SCB": part(outputs, types=("F32",))}


def bitsandbytes_schemes(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Callable[[str], Scheme | None]:
    """The scheme of each module, ``None`` for a plain one."""
    names = checkpoint.names()

    def scheme_of(module: str) -> Scheme | None:
        if module + ".SCB" in names:
            return EightBitScheme()
        states = [name for kind in _KINDS if (name := module + _STATE + kind) in names]
        return _four_bit(checkpoint, states[0]) if states else None

    return scheme_of


def _four_bit(checkpoint: Checkpoint, name: str) -> FourBitScheme:
    """The settings that lie beside the codes, as JSON in a tensor of bytes."""
    info = checkpoint.info(name)
    if info.type != "U8" or info.nbytes > _MAX_STATE:
        raise CheckpointError(f"The tensor {name} is no JSON text of at most {_MAX_STATE} bytes.")
    try:
        state = json.loads(checkpoint.read(name).data.tobytes())
    except (ValueError, RecursionError):
        state = None
    if not isinstance(state, dict):
        raise CheckpointError(f"The checkpoint is corrupt: {name} is no valid JSON.")
    settings = Settings("bitsandbytes", state)
    nested = "nested_blocksize" in state
    offset = state.get("nested_offset", 0.0)
    if not isinstance(offset, (int, float)) or not math.isfinite(offset):
        raise CheckpointError(f"The checkpoint is corrupt: {name} has no usable nested_offset.")
    return FourBitScheme(
        settings.one_of("blocksize", 64, _BLOCKS),
        settings.one_of("nested_blocksize", 256, _BLOCKS) if nested else None,
        float(offset),
    )
