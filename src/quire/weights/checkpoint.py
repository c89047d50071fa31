"""A model on disk: its config and tensors, under Hugging Face's names whatever the format."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

from quire.weights.errors import CheckpointError, misshapen
from quire.weights.tensors import RawTensor, TensorInfo


class Checkpoint(Protocol):
    """``config`` has the fields of a Hugging Face ``config.json``, ``generation_config`` those of its namesake."""

    @property
    def path(self) -> Path: ...

    @property
    def config(self) -> Mapping[str, Any]: ...

    @property
    def generation_config(self) -> Mapping[str, Any]: ...

    def names(self) -> Collection[str]:
        """Names of all parameters, such as ``model.layers.0.self_attn.q_proj.weight``."""
        ...

    def info(self, name: str) -> TensorInfo:
        """Type, shape and size without reading. Raises ``CheckpointError`` for a name that is not there."""
        ...

    def read(self, name: str, shape: tuple[int, ...] | None = None) -> RawTensor:
        """The tensor; raises ``CheckpointError`` when it is missing or its shape is not ``shape``."""
        ...

    def release(self, name: str) -> None:
        """What was read of the tensor is no longer needed in memory."""
        ...


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Open a GGUF file or a Hugging Face directory. Raises ``CheckpointError``."""
    from quire.weights.gguf_checkpoint import GGUFCheckpoint
    from quire.weights.hf_checkpoint import HFCheckpoint

    path = Path(path)
    return HFCheckpoint(path) if path.is_dir() else GGUFCheckpoint(path)


def lookup(infos: Mapping[str, TensorInfo], file: str, name: str, shape: tuple[int, ...] | None = None) -> TensorInfo:
    """The tensor's entry, checked against the shape that the model needs."""
    info = infos.get(name)
    if info is None:
        raise CheckpointError(
            f"{file} lacks the tensor {name}, which its config calls for: fetch it again, it is incomplete or of "
            "another architecture."
        )
    if shape is not None and info.shape != shape:
        raise misshapen(name, info.shape, shape)
    return info
