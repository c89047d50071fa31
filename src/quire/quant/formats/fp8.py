"""Checkpoints of 8-bit floats (e4m3): one scale a tensor, an output, or a block (DeepSeek's ``weight_scale_inv``, MX).

Where the format's activations are dynamic, each token gets a scale of its own: one for a whole batch, which some
engines take, would let requests change each other's results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from quire.ops.shapes import ActivationQuant
from quire.quant.formats.scheme import FLOATS, Part, Scheme, Settings, part
from quire.weights.checkpoint import Checkpoint
from quire.weights.errors import CheckpointError

_STATIC = (".input_scale", ".activation_scale")
_MAX_BLOCK = 1 << 20
MX_BLOCK = (1, 32)  # MXFP8: inputs of an output that share a power of two


@dataclass(frozen=True)
class Fp8Scheme:
    """``block``: outputs and inputs that share a scale; ``None``: one scale a tensor or an output.

    ``static``: the ending of the tensor that holds the inputs' scale; ``dynamic``: how they are rounded without one.
    """

    scale: str
    block: tuple[int, int] | None = None
    static: str | None = None
    dynamic: ActivationQuant | None = None

    def parts(self, outputs: int, inputs: int) -> Mapping[str, Part]:
        shapes: tuple[tuple[int, ...], ...] = ((), (1,), (outputs, 1), (outputs,), (1, 1))
        if self.block:
            shapes = ((-(-outputs // self.block[0]), -(-inputs // self.block[1])),)
        # A block's scale is kept for each of its outputs.
        scale = Part(shapes, (*FLOATS, "F8_E8M0"), floats=min(self.block[0], outputs) if self.block else 0)
        if self.block == MX_BLOCK:
            scale = Part(shapes, ("U8", "F8_E8M0"), floats=1)
        parts = {".weight": part(outputs, inputs, types=("F8_E4M3",)), self.scale: scale}
        if self.static:
            parts[self.static] = Part(((), (1,), (1, 1)), FLOATS)
        return parts


def fp8_schemes(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Callable[[str], Scheme | None]:
    """The scheme of each module, ``None`` for a plain one. Raises ``CheckpointError`` for unknown settings."""
    settings, names = Settings("fp8", config), checkpoint.names()
    static = settings.one_of("activation_scheme", "dynamic", ("static", "dynamic")) == "static"
    block = block_of(config.get("weight_block_size"))
    dynamic = None if static else ActivationQuant("fp8", group=block[1] if block else None)

    def scheme_of(module: str) -> Scheme | None:
        if module + ".weight" not in names or checkpoint.info(module + ".weight").type != "F8_E4M3":
            return None
        scale = ".weight_scale_inv" if module + ".weight_scale_inv" in names else ".weight_scale"
        fixed = next((ending for ending in _STATIC if module + ending in names), _STATIC[0]) if static else None
        return Fp8Scheme(scale, block, fixed, dynamic)

    return scheme_of


def block_of(value: Any) -> tuple[int, int] | None:
    """A block's size as a config has it. Raises ``CheckpointError`` for what is none."""
    match value:
        case None:
            return None
        case [int(high), int(wide)] if 8 <= high <= _MAX_BLOCK and 8 <= wide <= _MAX_BLOCK:
            return high, wide
    raise CheckpointError(f"The fp8 checkpoint's block size is {str(value)[:30]}; two numbers from 8 on are needed.")
