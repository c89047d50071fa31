"""A Hugging Face directory: config.json and one or many safetensors files."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from quire.weights.checkpoint import lookup
from quire.weights.errors import CheckpointError
from quire.weights.safetensors import SafetensorsFile
from quire.weights.tensors import RawTensor, TensorInfo

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_JSON = 256 * 1024 * 1024


@dataclass(frozen=True)
class _Index:
    """Where each tensor is."""

    infos: dict[str, TensorInfo]
    files: dict[str, SafetensorsFile]


class HFCheckpoint:
    """Its weight files are opened when a tensor is first asked for: the front needs none, random weights neither."""

    def __init__(self, path: Path) -> None:
        self.path = path
        config = read_json(path / "config.json")
        if config is None:
            files = sorted(p.name for p in path.glob("*.gguf"))
            cure = f" Name a file of it, such as {path / files[0]}." if files else ""
            raise CheckpointError(f"{path.name or path} is no model directory: it holds no config.json.{cure}")
        self.config: Mapping[str, Any] = with_flat_rope(config)
        self.generation_config: Mapping[str, Any] = read_json(path / "generation_config.json") or {}

    @cached_property
    def _index(self) -> _Index:
        index = _Index({}, {})
        for path, names in _shard_files(self.path).items():
            file = SafetensorsFile.open(self.path / path)
            for name in file.tensors if names is None else names:
                if name not in file.tensors:
                    raise CheckpointError(f"{path} lacks the tensor {name}, which {INDEX} places there.")
                if name in index.infos:
                    raise CheckpointError(f"{self.path.name} holds the tensor {name} in two files.")
                index.infos[name] = file.tensors[name]
                index.files[name] = file
        return index

    def names(self) -> Collection[str]:
        return self._index.infos.keys()

    def info(self, name: str) -> TensorInfo:
        return lookup(self._index.infos, self.path.name, name)

    def read(self, name: str, shape: tuple[int, ...] | None = None) -> RawTensor:
        info = lookup(self._index.infos, self.path.name, name, shape)
        return RawTensor(info.type, info.shape, self._index.files[name].raw(name))

    def release(self, name: str) -> None:
        self._index.files[name].release(name)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or ``None`` when there is no file. Raises ``CheckpointError``."""
    if not path.is_file():
        return None
    if path.stat().st_size > MAX_JSON:
        raise CheckpointError(f"{path.name} is larger than {MAX_JSON >> 20} MiB.")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path.name or path} is no valid JSON.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.name or path} is no JSON object.")
    return value


def _shard_files(path: Path) -> dict[str, list[str] | None]:
    """File name -> its tensors' names (``None``: all that it holds)."""
    index = read_json(path / INDEX)
    if index is not None:
        return _indexed(index.get("weight_map"))
    if (path / SINGLE).is_file():
        return {SINGLE: None}
    files = sorted(f.name for f in path.glob("*.safetensors") if not f.name.startswith("consolidated"))
    if files:
        return dict.fromkeys(files)
    if any(path.glob("*.bin")) or any(path.glob("*.pt*")):
        raise CheckpointError(
            f"{path.name} holds only pickled weights (.bin, .pt), which can run code when loaded; "
            "convert them to safetensors."
        )
    raise CheckpointError(f"{path.name} holds no *.safetensors files.")


def _indexed(weight_map: Any) -> dict[str, list[str] | None]:
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{INDEX} has no weight_map.")
    files: dict[str, list[str] | None] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file.endswith(".safetensors") or Path(file).name != file:
            raise CheckpointError(f"{INDEX} places {name} in {str(file)[:60]!r}, which is no file beside it.")
        names = files.setdefault(file, [])
        if names is not None:
            names.append(name)
    return files


def with_flat_rope(config: dict[str, Any]) -> dict[str, Any]:
    """``rope_parameters`` (Transformers 5) spread into ``rope_theta``, ``rope_scaling``, ``rope_local_base_freq``."""
    parameters = config.get("rope_parameters")
    if not isinstance(parameters, dict):
        return config
    full = parameters.get("full_attention", parameters)
    local = parameters.get("sliding_attention")
    flat: dict[str, Any] = {}
    if isinstance(full, dict):
        flat["rope_theta"] = full.get("rope_theta")
        if full.get("rope_type", "default") != "default":
            flat["rope_scaling"] = {key: value for key, value in full.items() if key != "rope_theta"}
        flat["partial_rotary_factor"] = full.get("partial_rotary_factor")
    if isinstance(local, dict):
        flat["rope_local_base_freq"] = local.get("rope_theta")
    return {key: value for key, value in flat.items() if value is not None} | config
