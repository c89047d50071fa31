"""Whether a model can be run, by its config and headers alone: without torch, so that a bad one is refused at once."""

from __future__ import annotations

from pathlib import Path

from quire.config.engine import EngineConfig
from quire.model.check import check_headers
from quire.model.config_reader import UnsupportedVariant
from quire.model.fallback_class import known_class
from quire.model.families import describe
from quire.model.inventory import tensors_of
from quire.model.placing import placed
from quire.quant.formats.detect import storage_of
from quire.weights.checkpoint import Checkpoint, open_checkpoint


def open_supported(config: EngineConfig, path: Path) -> Checkpoint:
    """The checkpoint at ``path``.

    Raises ``CheckpointError`` for an unknown architecture or quantisation, for a config that makes no sense, and for
    one that the tensors contradict.
    """
    checkpoint = open_checkpoint(path)
    try:
        spec, names = describe(checkpoint.config)
    except UnsupportedVariant:
        known_class(checkpoint)
        return checkpoint
    if config.load_format != "dummy":
        names = placed(names, checkpoint.names())
        storage = storage_of(checkpoint, config.quantization)
        check_headers(checkpoint, storage, tensors_of(spec, names, checkpoint.names()), names)
    return checkpoint
