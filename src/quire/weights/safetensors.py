"""Safetensors files: a JSON header, then the tensors. Checked as strictly as GGUF files."""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any, Self

from quire.weights.errors import CheckpointError
from quire.weights.tensor_types import MAX_DIMS, TYPES, tensor_nbytes
from quire.weights.tensors import Bytes, TensorInfo, check_layout, map_file, release, view

MAX_HEADER = 100_000_000  # the format's own limit
PREFIX = 8
_LFS = b"version https://git-lfs"


class SafetensorsFile:
    """An open safetensors file."""

    def __init__(self, path: Path, buffer: mmap.mmap, tensors: dict[str, TensorInfo]) -> None:
        self.path = path
        self.tensors = tensors
        self._buffer = buffer

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Map and check the file. Raises ``CheckpointError``."""
        path = Path(path)
        buffer = map_file(path)
        start, header = _header(buffer, path.name)
        tensors = {
            name: _tensor(path.name, name, entry, start) for name, entry in header.items() if name != "__metadata__"
        }
        check_layout(path.name, list(tensors.values()), start, len(buffer))
        return cls(path, buffer, tensors)

    def raw(self, name: str) -> Bytes:
        """The tensor's bytes, a view of the mapped file."""
        return view(self._buffer, self.tensors[name])

    def release(self, name: str) -> None:
        release(self._buffer, self.tensors[name])


def _header(buffer: mmap.mmap, file: str) -> tuple[int, dict[str, Any]]:
    size = len(buffer)
    length = int.from_bytes(buffer[:PREFIX], "little")
    if buffer[: len(_LFS)] == _LFS:
        raise CheckpointError(f"{file} is only Git LFS' pointer to the weights; fetch them with `git lfs pull`.")
    if size < PREFIX or length > min(MAX_HEADER, size - PREFIX):
        raise CheckpointError(
            f"{file} is truncated or no safetensors file: its header claims {length} bytes; fetch it again."
        )
    try:
        header = json.loads(buffer[PREFIX : PREFIX + length], object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError):
        raise CheckpointError(f"{file} is corrupt: its header is no valid JSON.") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{file} is corrupt: its header is no JSON object.")
    return PREFIX + length, header


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("duplicate keys")
    return out


def _tensor(file: str, name: str, entry: Any, start: int) -> TensorInfo:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            pass
        case _:
            raise CheckpointError(f"{file} is corrupt: the entry of tensor {name!r} is malformed.")
    if dtype not in TYPES or TYPES[dtype].block > 1:
        raise CheckpointError(f"{file}: tensor {name!r} has the unknown type {dtype[:20]!r}.")
    if len(shape) > MAX_DIMS or any(type(dim) is not int or dim < 0 for dim in shape):
        raise CheckpointError(f"{file} is corrupt: tensor {name!r} has an impossible shape.")
    dims = tuple(shape)
    if begin < 0 or end - begin != tensor_nbytes(file, name, dtype, dims):
        raise CheckpointError(f"{file} is corrupt: the size of tensor {name!r} does not fit its shape {list(dims)}.")
    return TensorInfo(name, dtype, dims, start + begin, end - begin)
