"""From a checkpoint to a decoder: headers checked against the spec, then tensors read and packed in parallel."""

from __future__ import annotations

import logging
import re
from collections.abc import Set
from concurrent.futures import ThreadPoolExecutor

from quire.model.assemble import assemble
from quire.model.decoder import Decoder
from quire.model.placing import placed
from quire.model.source import Headers, Tensors, WeightSizes
from quire.model.spec import DecoderSpec
from quire.model.weight_map import WeightMap
from quire.ops.backend import Ops
from quire.quant.formats.detect import storage_of
from quire.quant.gguf import dequantize
from quire.quant.reader import reader_of
from quire.weights.checkpoint import Checkpoint
from quire.weights.errors import FROM_ONE, CheckpointError

logger = logging.getLogger("quire.model")
_HARMLESS = re.compile(
    r"inv_freq$|masked_bias$|attn\.bias$|attention\.bias$|position_ids$|_scale$|g_idx$|rope_freqs|quant_state\."
)


class Loader:
    """Reads one checkpoint into kernel layouts. ``quantization``: as the user asked for, see ``reader_of``."""

    def __init__(
        self, checkpoint: Checkpoint, spec: DecoderSpec, names: WeightMap, ops: Ops, quantization: str | None = None
    ) -> None:
        self.spec = spec
        self._checkpoint = checkpoint
        self._names = placed(names, checkpoint.names())
        self._ops = ops
        self._storage = storage_of(checkpoint, quantization)
        self._reader = reader_of(checkpoint, quantization, names.kept_plain, ops.device)

    def check(self) -> WeightSizes:
        """Raises ``CheckpointError`` naming a tensor that is missing, misshapen or odd."""
        headers = Headers(self._storage, self._reader)
        assemble(self.spec, self._names, headers)
        self._check_unused(headers.used)
        return headers.sizes

    def _check_unused(self, used: Set[str]) -> None:
        """Tells of tensors without a use; refuses those that the layers would compute something else with."""
        self._check_depth(used)
        unused = set(self._checkpoint.names()) - used - {self._names.head + ".weight"}
        modules = {name.rpartition(".")[0] for name in used}
        layers = re.compile(re.escape(self._names.out[0].partition("{i}")[0]) + r"(\d+)\.")
        for name in sorted(unused):
            module, _, kind = name.rpartition(".")
            layer = layers.match(name)
            extra_weight = kind == "weight" and layer is not None and int(layer[1]) < len(self.spec.layers)
            if extra_weight or (kind == "bias" and module in modules and self._is_not_zero(name)):
                raise CheckpointError(
                    f"The checkpoint has the tensor {name}, which the config does not call for; {FROM_ONE}."
                )
        if rest := sorted(name for name in unused if not _HARMLESS.search(name)):
            some = ", ".join(rest[:4]) + (", ..." if len(rest) > 4 else "")
            logger.warning("The checkpoint holds %d tensors that the decoder does not use: %s", len(rest), some)

    def _check_depth(self, used: Set[str]) -> None:
        """Refuses whole layers beyond the config's; those that predict further tokens have parts of their own."""
        named = re.compile(re.escape(self._names.out[0].partition("{i}")[0]) + r"(\d+)\.(.+)")
        kinds = {found[2] for name in used if (found := named.match(name))}
        beyond: dict[int, list[re.Match[str]]] = {}
        for name in self._checkpoint.names():
            if (found := named.match(name)) and int(found[1]) >= len(self.spec.layers) and not _HARMLESS.search(name):
                beyond.setdefault(int(found[1]), []).append(found)
        for layer, parts in sorted(beyond.items()):
            if all(part[2] in kinds for part in parts):
                raise CheckpointError(
                    f"The checkpoint has the tensor {parts[0][0]}, but the config's num_hidden_layers is "
                    f"{len(self.spec.layers)}, not {layer + 1} or more; {FROM_ONE}."
                )

    def _is_not_zero(self, name: str) -> bool:
        """GPTQ's tools write biases of zeros for layers that have none."""
        return bool(dequantize(self._checkpoint.read(name)).any())

    def decoder(self, threads: int, max_positions: int) -> Decoder:
        source = Tensors(self._checkpoint, self._reader, self._ops)
        with ThreadPoolExecutor(threads) as pool:
            weights = assemble(self.spec, self._names, source, pool.map)
        return Decoder(self.spec, weights, self._ops, max_positions)
