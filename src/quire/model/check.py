"""A checkpoint's headers against the tensors that its config calls for: before a weight is read, without torch."""

from __future__ import annotations

import re
from collections.abc import Set

from quire.model.inventory import DecoderTensors, Matrix, Vector, parts_of
from quire.model.weight_map import WeightMap
from quire.quant.formats.storage import Storage, check_type
from quire.weights.checkpoint import Checkpoint
from quire.weights.errors import FROM_ONE, CheckpointError, misshapen

_HARMLESS = re.compile(
    r"inv_freq$|masked_bias$|attn\.bias$|attention\.bias$|position_ids$|_scale$|g_idx$|rope_freqs|quant_state\."
)


def check_headers(checkpoint: Checkpoint, storage: Storage, tensors: DecoderTensors, names: WeightMap) -> list[str]:
    """Names of tensors that are of no use, and do no harm.

    Raises ``CheckpointError`` naming a tensor that is missing or misshapen, or that the config does not call for,
    though the layers would compute something else with it.
    """
    used: set[str] = set()
    for matrix in parts_of(tensors, Matrix):
        used |= storage.tensors(*matrix.stored).keys()
    for vector in parts_of(tensors, Vector):
        _check_vector(checkpoint, vector)
        used.add(vector.name)
    layers = re.compile(re.escape(names.out[0].partition("{i}")[0]) + r"(\d+)\.(.+)")
    _check_depth(checkpoint, used, layers, len(tensors.layers))
    return _unused(checkpoint, used | {names.head + ".weight"}, layers, len(tensors.layers))


def _check_vector(checkpoint: Checkpoint, vector: Vector) -> None:
    info = checkpoint.info(vector.name)
    if info.shape != vector.shape:
        raise misshapen(vector.name, info.shape, vector.shape)
    check_type(vector.name, info.type)


def _check_depth(checkpoint: Checkpoint, used: Set[str], layers: re.Pattern[str], count: int) -> None:
    """Refuses whole layers beyond the config's; those that predict further tokens have parts of their own."""
    kinds = {found[2] for name in used if (found := layers.match(name))}
    beyond: dict[int, list[re.Match[str]]] = {}
    for name in checkpoint.names():
        if (found := layers.match(name)) and int(found[1]) >= count and not _HARMLESS.search(name):
            beyond.setdefault(int(found[1]), []).append(found)
    for layer, parts in sorted(beyond.items()):
        if all(part[2] in kinds for part in parts):
            raise CheckpointError(
                f"The checkpoint has the tensor {parts[0][0]}, but the config's num_hidden_layers is "
                f"{count}, not {layer + 1} or more; {FROM_ONE}."
            )


def _unused(checkpoint: Checkpoint, used: Set[str], layers: re.Pattern[str], count: int) -> list[str]:
    modules = {name.rpartition(".")[0] for name in used}
    unused = sorted(set(checkpoint.names()) - used)
    for name in unused:
        module, _, kind = name.rpartition(".")
        layer = layers.match(name)
        extra_weight = kind == "weight" and layer is not None and int(layer[1]) < count
        if extra_weight or (kind == "bias" and module in modules and _is_not_zero(checkpoint, name)):
            raise CheckpointError(
                f"The checkpoint has the tensor {name}, which the config does not call for; {FROM_ONE}."
            )
    return [name for name in unused if not _HARMLESS.search(name)]


def _is_not_zero(checkpoint: Checkpoint, name: str) -> bool:
    """GPTQ's tools write biases of zeros for layers that have none."""
    return bool(checkpoint.read(name).data.any())
