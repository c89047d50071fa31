"""GPTQ checkpoints: 2, 3, 4 or 8 bits (AutoRound's: 2 to 8) packed along the inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from quire.quant.formats.patterns import compiled, matches
from quire.quant.formats.scheme import Part, Scheme, Settings, part
from quire.quant.formats.sizes import group_count, packed_words
from quire.weights.checkpoint import Checkpoint
from quire.weights.errors import CheckpointError

BITS = (2, 3, 4, 8)


@dataclass(frozen=True)
class GptqScheme:
    bits: int
    group: int  # -1: one for all inputs
    v1: bool  # whose files store the zeros less 1

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
