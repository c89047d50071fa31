"""Whether a model can be run, by its config alone: without torch, so that a bad one is refused at once."""

from __future__ import annotations

from pathlib import Path

from quire.model.config_reader import UnsupportedVariant
from quire.model.fallback_class import known_class
from quire.model.families import describe
from quire.weights.checkpoint import open_checkpoint


def check_config(path: Path) -> None:
    """Raises ``CheckpointError`` for a directory of an unknown architecture, or with a config that makes no sense.

    GGUF files are not looked into twice: opening one checks its architecture.
    """
    if not path.is_dir():
        return
    checkpoint = open_checkpoint(path)
    try:
        describe(checkpoint.config)
    except UnsupportedVariant:
        known_class(checkpoint)
