"""AWQ checkpoints (the gemm layout): 4 bits packed along the outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from quire.quant.formats.scheme import Part, Scheme, Settings, part
from quire.quant.formats.sizes import group_count
from quire.weights.checkpoint import Checkpoint
from quire.weights.errors import CheckpointError


@dataclass(frozen=True)
class AwqScheme:
    group: int  # -1: one for all inputs
    zero_point: bool

    def parts(self, outputs: int, inputs: int) -> Mapping[str, Part]:
        if outputs % 8:
            raise CheckpointError(f"AWQ packs 8 outputs into a word, which {outputs} outputs don't fill.")
        groups = group_count(inputs, self.group)
        return {
            ".qweight": part(inputs, outputs // 8, types=("I32",)),
            ".qzeros": part(groups, outputs // 8, types=("I32",), optional=not self.zero_point),
            ".scales": part(groups, outputs),
        }


def awq_schemes(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Callable[[str], Scheme | None]:
    """The scheme of each module, ``None`` for a plain one. Raises ``CheckpointError`` for unknown settings."""
    old_names = {"bits": config.get("w_bit"), "group_size": config.get("q_group_size")}
    settings = Settings("AWQ", {**old_names, **{key: value for key, value in config.items() if value is not None}})
    settings.one_of("bits", None, (4,))
    version = settings.text("version", "gemm")
    if version.lower() != "gemm":
        raise CheckpointError(f"The AWQ checkpoint has the layout {version[:20]!r}; only gemm is supported.")
    scheme = AwqScheme(settings.group_size(128), settings.flag("zero_point", True))
    return lambda module: scheme if module + ".qweight" in checkpoint.names() else None
