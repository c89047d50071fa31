"""What every checkpoint file offers: tensors by name, as raw bytes over a memory map."""

from __future__ import annotations

import mmap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from quire.weights.errors import CheckpointError

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class TensorInfo:
    """``type``: a key of ``tensor_types.TYPES``; ``shape``: row-major (out, in); ``offset``: bytes into the file."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class RawTensor:
    """A tensor as it lies in the file: ``data`` holds ``prod(shape)`` values in blocks of ``type``, row by row."""

    type: str
    shape: tuple[int, ...]
    data: Bytes

    def with_data(self, data: Bytes) -> Self:
        return replace(self, data=data)


def map_file(path: Path) -> mmap.mmap:
    """The file's bytes, read-only. Raises ``CheckpointError`` when it cannot be read or is empty."""
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise CheckpointError(f"{path.name} is empty.") from None
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror or error}.") from None


def check_layout(file: str, tensors: list[TensorInfo], start: int, end: int) -> None:
    """Every tensor lies in ``start .. end``, and no two share a byte."""
    last: TensorInfo | None = None
    for info in sorted(tensors, key=lambda t: t.offset):
        if info.offset < start or info.offset + info.nbytes > end:
            raise CheckpointError(
                f"{file} is truncated or corrupt: tensor {info.name!r} ends at byte {info.offset + info.nbytes}, "
                f"the file at {end}; fetch it again."
            )
        if last is not None and info.offset < last.offset + last.nbytes:
            raise CheckpointError(f"{file} is corrupt: tensors {last.name!r} and {info.name!r} overlap.")
        last = info


def release(buffer: mmap.mmap, info: TensorInfo) -> None:
    """Let the tensor's pages leave this process's memory; who reads it again gets them from the file."""
    if hasattr(mmap, "MADV_DONTNEED"):
        start = info.offset // mmap.PAGESIZE * mmap.PAGESIZE
        buffer.madvise(mmap.MADV_DONTNEED, start, info.offset + info.nbytes - start)


def view(buffer: Any, info: TensorInfo) -> Bytes:
    """The tensor's bytes without a copy."""
    return np.frombuffer(buffer, dtype=np.uint8, count=info.nbytes, offset=info.offset)
