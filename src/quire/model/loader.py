"""From a checkpoint to a decoder: headers checked against the spec, then tensors read and packed in parallel."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

from quire.model.assemble import assemble
from quire.model.check import check_headers
from quire.model.decoder import Decoder
from quire.model.inventory import WeightSizes, tensors_of, weight_sizes
from quire.model.placing import placed
from quire.model.source import Tensors
from quire.model.spec import DecoderSpec
from quire.model.weight_map import WeightMap
from quire.ops.backend import Ops
from quire.quant.formats.detect import storage_of
from quire.quant.reader import reader_of
from quire.weights.checkpoint import Checkpoint

logger = logging.getLogger("quire.model")


class Loader:
    """Reads one checkpoint into kernel layouts. ``quantization``: as the user asked for, see ``storage_of``."""

    def __init__(
        self, checkpoint: Checkpoint, spec: DecoderSpec, names: WeightMap, ops: Ops, quantization: str | None = None
    ) -> None:
        self.spec = spec
        self._checkpoint = checkpoint
        self._names = placed(names, checkpoint.names())
        self._tensors = tensors_of(spec, self._names, checkpoint.names())
        self._ops = ops
        self._storage = storage_of(checkpoint, quantization)
        self._reader = reader_of(self._storage, names.kept_plain, ops.device)

    def check(self) -> WeightSizes:
        """Raises ``CheckpointError`` naming a tensor that is missing, misshapen or odd."""
        if unused := check_headers(self._checkpoint, self._storage, self._tensors, self._names):
            some = ", ".join(unused[:4]) + (", ..." if len(unused) > 4 else "")
            logger.warning("The checkpoint holds %d tensors that the decoder does not use: %s", len(unused), some)
        return weight_sizes(self._tensors, lambda matrix: self._reader.nbytes(*matrix.stored))

    def decoder(self, threads: int, max_positions: int) -> Decoder:
        source = Tensors(self._checkpoint, self._reader, self._ops)
        with ThreadPoolExecutor(threads) as pool:
            weights = assemble(self._tensors, source, pool.map)
        return Decoder(self.spec, weights, self._ops, max_positions)
