"""AutoRound checkpoints: GPTQ's or AWQ's layout, as ``packing_format`` says; some layers have settings of their own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from quire.quant.formats.awq import AwqScheme
from quire.quant.formats.gptq import GptqScheme
from quire.quant.formats.patterns import compiled
from quire.quant.formats.scheme import Scheme, Settings
from quire.weights.checkpoint import Checkpoint
from quire.weights.errors import CheckpointError

BITS = (2, 3, 4, 5, 6, 7, 8)


def _gptq(settings: Settings) -> Scheme:
    return GptqScheme(settings.one_of("bits", None, BITS), settings.group_size(128), v1=True)


def _gptq_v2(settings: Settings) -> Scheme:
    return GptqScheme(settings.one_of("bits", None, BITS), settings.group_size(128), v1=False)


def _awq(settings: Settings) -> Scheme:
    settings.one_of("bits", None, (4,))
    return AwqScheme(settings.group_size(128), zero_point=not settings.flag("sym", True))


# auto_round/export/export_to_autoround/export.py: only its GPTQ packers store zeros less 1.
_PACKINGS: dict[str, Callable[[Settings], Scheme]] = {
    "auto_round:auto_gptq": _gptq,
    "auto_round:gptq": _gptq,
    "auto": _gptq,
    "auto_round": _gptq_v2,
    "auto_round:gptqmodel": _gptq_v2,
    "auto_round:auto_awq": _awq,
    "auto_round:awq": _awq,
}
# Files of 2024 have a kernel's name in ``backend`` instead.
_OLD_BACKENDS: dict[str, Callable[[Settings], Scheme]] = {
    "auto_round:gptq:exllamav2": _gptq,
    "auto_round:gptq:triton": _gptq,
    "auto_round:exllamav2": _gptq_v2,
    "auto_round:triton": _gptq_v2,
}
_ROTATIONS = ("rotation_config", "spinquant_config")
_EXPRESSION = re.compile(r"[*+?^$()\[\]{}|\\]")  # what makes a key of ``extra_config`` one, rather than a name


def autoround_schemes(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Callable[[str], Scheme | None]:
    """The scheme of each module, ``None`` for a plain one. Raises ``CheckpointError`` for unknown settings.

    What is quantised is seen from the tensors: ``block_name_to_quantize`` and overrides of 16 bits are not needed.
    """
    settings = Settings("AutoRound", config)
    if rotation := next((key for key in _ROTATIONS if config.get(key)), None):
        raise CheckpointError(
            f"The AutoRound checkpoint has a {rotation}: layers with rotated inputs are not supported."
        )
    packing = _packing(settings)
    extra = settings.group("extra_config")
    overrides = {name: extra.group(name).values for name in extra.values}
    expressions = {name: compiled(name) for name in overrides if _EXPRESSION.search(name)}

    def scheme_of(module: str) -> Scheme | None:
        if module + ".qweight" not in checkpoint.names():
            return None
        found = (overrides[name] for name, expression in expressions.items() if expression.search(module))
        override = overrides[module] if module in overrides else next(found, {})
        return _scheme(packing, Settings("AutoRound", {**config, **override}))

    _scheme(packing, settings)
    return scheme_of


def _packing(settings: Settings) -> Callable[[Settings], Scheme]:
    if "packing_format" not in settings.values and (old := _OLD_BACKENDS.get(settings.text("backend", ""))):
        return old
    return _PACKINGS[settings.one_of("packing_format", "auto_round:auto_gptq", tuple(_PACKINGS))]


def _scheme(packing: Callable[[Settings], Scheme], settings: Settings) -> Scheme:
    settings.one_of("data_type", "int", ("int",))
    settings.one_of("act_bits", 16, (16, 32))
    return packing(settings)
