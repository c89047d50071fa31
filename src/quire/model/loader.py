"""From a checkpoint to a decoder: headers checked against the spec, then tensors read and packed in parallel."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from quire.model.assemble import assemble
from quire.model.decoder import Decoder
from quire.model.source import Headers, Tensors
from quire.model.spec import DecoderSpec
from quire.model.weight_map import WeightMap
from quire.ops.backend import Ops
from quire.quant.detect import reader_of
from quire.weights.checkpoint import Checkpoint


class Loader:
    """Reads one checkpoint into kernel layouts. ``quantization``: as the user asked for, see ``reader_of``."""

    def __init__(
        self, checkpoint: Checkpoint, spec: DecoderSpec, names: WeightMap, ops: Ops, quantization: str | None = None
    ) -> None:
        self.spec = spec
        self._checkpoint = checkpoint
        self._names = names
        self._ops = ops
        keep = [name.rpartition("}.")[2] for name in (names.embedding, names.head, names.moe.router)]
        self._reader = reader_of(checkpoint, quantization, keep)

    def check(self) -> int:
        """Bytes of the loaded weights. Raises ``CheckpointError`` naming a tensor that is missing or misshapen."""
        headers = Headers(self._checkpoint, self._reader)
        assemble(self.spec, self._names, headers)
        return headers.nbytes

    def decoder(self, threads: int, max_positions: int) -> Decoder:
        source = Tensors(self._checkpoint, self._reader, self._ops)
        with ThreadPoolExecutor(threads) as pool:
            weights = assemble(self.spec, self._names, source, pool.map)
        return Decoder(self.spec, weights, self._ops, max_positions)
