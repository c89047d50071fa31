"""The Transformers config of a checkpoint without a family, or of its text part."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quire.model.config_reader import ConfigReader
from quire.model.fallback_class import SIZES, TEXT_PART, known_class, unknown
from quire.weights.checkpoint import Checkpoint
from quire.weights.errors import CheckpointError

_BATCH_DEPENDENT = ("dynamic", "longrope")  # rope scalings that Transformers chooses by the longest of a batch


@dataclass(frozen=True)
class ClassConfig:
    """``config``: Transformers' own. ``renamed``: expressions in the checkpoint's names, and what they become."""

    architecture: str
    config: Any
    renamed: Mapping[str, str] | None = None


def class_config(checkpoint: Checkpoint) -> ClassConfig:
    """Of a model for images and text that of the text part, where that has a class of its own.

    Raises ``CheckpointError`` as ``known_class`` does, and for a config that Transformers can't read.
    """
    known = known_class(checkpoint)
    architecture = known.architecture
    from transformers import AutoConfig

    try:
        loaded = AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # spoilt, or unknown or in need of code of its own
        if not known.certain:
            raise CheckpointError(unknown(architecture)) from error
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"Transformers can't read this config of the architecture {architecture!r}: {reason}"
        ) from error
    text = loaded.get_text_config()
    for key in SIZES:
        ConfigReader({key: getattr(text, key, None)}).count(key, default=1)
    rope = getattr(text, "rope_parameters", None) or {}
    if isinstance(rope, dict) and rope.get("rope_type") in _BATCH_DEPENDENT:
        raise CheckpointError(
            f"The rope scaling {rope['rope_type']!r} of the architecture {architecture!r} would make tokens depend "
            "on the other requests of a batch: Quire does not run it through Transformers."
        )
    if known.text_only:
        return ClassConfig(architecture, text, {f"^{re.escape(TEXT_PART)}": "model."})
    return ClassConfig(architecture, loaded)
