"""A GGUF file read as a Hugging Face checkpoint: names and config translated, llama.cpp's rewrites undone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from quire.weights.checkpoint import lookup
from quire.weights.errors import CheckpointError
from quire.weights.gguf import GGUFFile
from quire.weights.gguf_config import config_of, generation_config_of
from quire.weights.gguf_names import ARCHITECTURES, LONGROPE_FACTORS, MIXTRAL, ROPE_FACTORS, ArchMap, Named, translate
from quire.weights.tensors import Bytes, RawTensor, TensorInfo


class GGUFCheckpoint:
    """Values equal those that Transformers reads from the same file, bit for bit once dequantised.

    Two rewrites of llama.cpp's converter are undone on reading: rows of q and k in llama files lie in the order of
    its interleaved rotary embedding (rows are whole blocks, so moving them keeps the quantised bytes), and Gemma's
    norm weights have 1 added (subtracted here in float32, as Transformers does, so that ``1 + weight`` is right).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.gguf = GGUFFile.open(path)
        arch = _architecture(self.gguf)
        self._named: dict[str, Named] = {}
        self._gguf_names: dict[str, str] = {}
        self._infos: dict[str, TensorInfo] = {}
        self._name_tensors(arch)
        self.config: Mapping[str, Any] = config_of(self.gguf, arch, self._infos)
        self.generation_config: Mapping[str, Any] = generation_config_of(self.gguf, self.config)

    def _name_tensors(self, arch: ArchMap) -> None:
        for gguf_name, info in self.gguf.tensors.items():
            if gguf_name in (ROPE_FACTORS, *LONGROPE_FACTORS.values()):
                continue
            named = translate(arch, gguf_name)
            if named is None:
                raise CheckpointError(
                    f"{self.path.name} holds the tensor {gguf_name!r}, which a {arch.model_type} model has no use for."
                )
            if named.name in self._infos:
                raise CheckpointError(f"{self.path.name} is corrupt: it holds two tensors for {named.name}.")
            self._named[named.name] = named
            self._gguf_names[named.name] = gguf_name
            self._infos[named.name] = replace(info, name=named.name)

    def names(self) -> Collection[str]:
        return self._infos.keys()

    def info(self, name: str) -> TensorInfo:
        return lookup(self._infos, self.path.name, name)

    def read(self, name: str, shape: tuple[int, ...] | None = None) -> RawTensor:
        info = lookup(self._infos, self.path.name, name, shape)
        named = self._named[name]
        tensor = RawTensor(info.type, info.shape, self.gguf.raw(self._gguf_names[name]))
        if named.permuted:
            return tensor.with_data(self._unpermute(tensor, name))
        if named.minus_one:
            return tensor.with_data(self._minus_one(tensor, name))
        return tensor

    def release(self, name: str) -> None:
        self.gguf.release(self._gguf_names[name])

    def _unpermute(self, tensor: RawTensor, name: str) -> Bytes:
        heads = self.config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
        rows = tensor.shape[0]
        if rows % (2 * heads):
            raise CheckpointError(
                f"{self.path.name}: tensor {name} has {rows} rows, which {heads} heads do not divide."
            )
        paired = tensor.data.reshape(heads, rows // heads // 2, 2, -1)
        return np.ascontiguousarray(paired.swapaxes(1, 2)).reshape(-1)

    def _minus_one(self, tensor: RawTensor, name: str) -> Bytes:
        if tensor.type != "F32":
            raise CheckpointError(f"{self.path.name}: the norm weights {name} are {tensor.type}, not F32.")
        return (tensor.data.view("<f4") - np.float32(1)).view(np.uint8)


def _architecture(file: GGUFFile) -> ArchMap:
    name = file.metadata.get("general.architecture")
    parts = file.metadata.get("split.count", 1)
    if isinstance(parts, int) and parts > 1:
        raise CheckpointError(
            f"{file.path.name} is one of {parts} parts of a model; join them with llama-gguf-split --merge."
        )
    if not isinstance(name, str) or name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise CheckpointError(
            f"{file.path.name} holds the architecture {str(name)[:40]!r}; Quire reads from GGUF: {known}."
        )
    if name == "llama" and file.metadata.get("llama.expert_count"):  # Mixtral's files say llama
        return MIXTRAL
    return ARCHITECTURES[name]
