"""A Hugging Face directory: config.json and one or many safetensors files."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from quire.weights.checkpoint import lookup
from quire.weights.errors import CheckpointError
from quire.weights.safetensors import SafetensorsFile
from quire.weights.tensors import RawTensor, TensorInfo

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_JSON = 256 * 1024 * 1024


class HFCheckpoint:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.config: Mapping[str, Any] = read_config(path)
        self.generation_config: Mapping[str, Any] = read_json(path / "generation_config.json") or {}
        self._files: dict[str, SafetensorsFile] = {}
        self._infos: dict[str, TensorInfo] = {}
        for file, names in _shards(path).items():
            self._add(SafetensorsFile.open(path / file), names)

    def _add(self, file: SafetensorsFile, names: list[str] | None) -> None:
        for name in file.tensors if names is None else names:
            if name not in file.tensors:
                raise CheckpointError(f"{file.path.name} lacks the tensor {name}, which {INDEX} places there.")
            if name in self._infos:
                raise CheckpointError(f"{self.path.name} holds the tensor {name} in two files.")
            self._infos[name] = file.tensors[name]
            self._files[name] = file

    def names(self) -> Collection[str]:
        return self._infos.keys()

    def info(self, name: str) -> TensorInfo:
        return lookup(self._infos, self.path.name, name)

    def read(self, name: str, shape: tuple[int, ...] | None = None) -> RawTensor:
        info = lookup(self._infos, self.path.name, name, shape)
        return RawTensor(info.type, info.shape, self._files[name].raw(name))


def read_config(path: Path) -> Mapping[str, Any]:
    """A model directory's config.json. Raises ``CheckpointError``."""
    config = read_json(path / "config.json")
    if config is None:
        raise CheckpointError(f"{path.name} is no model directory: it holds no config.json.")
    return with_flat_rope(config)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or ``None`` when there is no file. Raises ``CheckpointError``."""
    if not path.is_file():
        return None
    if path.stat().st_size > MAX_JSON:
        raise CheckpointError(f"{path.name} is larger than {MAX_JSON >> 20} MiB.")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path.name} is no valid JSON.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.name} is no JSON object.")
    return value


def _shards(path: Path) -> dict[str, list[str] | None]:
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
