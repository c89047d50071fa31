"""GGUF files: typed metadata and tensors in one file. Written to be safe on hostile files.

Every count, length and offset is compared with the file's size, in Python's unbounded integers, before it is used.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from quire.weights.errors import CheckpointError
from quire.weights.tensor_types import GGUF_OTHER_TYPES, GGUF_TYPES, tensor_nbytes
from quire.weights.tensors import Bytes, TensorInfo, check_layout, map_file, release, view

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_PAIRS = 1 << 16
MAX_TENSORS = 1 << 20
MAX_NAME = 1 << 10
MAX_STRING = 1 << 26
MAX_ARRAY = 1 << 24
MAX_DIM = 1 << 40
MAX_GGUF_DIMS = 4
DEFAULT_ALIGNMENT = 32

STRING, ARRAY = 8, 9
_SCALARS: dict[int, np.dtype[Any]] = {
    code: np.dtype(kind)
    for code, kind in (
        (0, "<u1"), (1, "<i1"), (2, "<u2"), (3, "<i2"), (4, "<u4"), (5, "<i4"), (6, "<f4"), (7, "?"), (10, "<u8"),
        (11, "<i8"), (12, "<f8"),
    )
}  # fmt: skip
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


@dataclass(frozen=True)
class _Value:
    """Where a metadata value lies; ``count`` is None for what is no array."""

    type: int
    offset: int
    count: int | None
    end: int = 0


class Metadata(Mapping[str, Any]):
    """The file's key/value pairs, decoded when asked for: str, int, float, bool, ``list[str]`` or a numpy array."""

    def __init__(self, reader: _Reader, values: dict[str, _Value]) -> None:
        self._reader = reader
        self._values = values

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        if value.count is None:
            return self._reader.scalar(value, key)
        if value.type == STRING:
            return self._reader.strings(value.offset, value.end, value.count, key)
        kind = _SCALARS[value.type]
        return np.frombuffer(self._reader.buffer, dtype=kind, count=value.count, offset=value.offset)

    def index(self, key: str, text: str) -> int | None:
        """Where ``text`` stands in the strings of ``key``, without decoding them; ``None`` when nowhere."""
        value = self._values.get(key)
        if value is None or value.count is None or value.type != STRING:
            return None
        return self._reader.find_string(value.offset, value.end, text)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values


class GGUFFile:
    """An open GGUF file. ``tensors`` have torch's order of dimensions."""

    def __init__(self, path: Path, buffer: mmap.mmap, metadata: Metadata, tensors: dict[str, TensorInfo]) -> None:
        self.path = path
        self.metadata = metadata
        self.tensors = tensors
        self._buffer = buffer

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Map and check the file. Raises ``CheckpointError``."""
        path = Path(path)
        buffer = map_file(path)
        reader = _Reader(buffer, path.name)
        tensor_count, pair_count = reader.header()
        metadata = Metadata(reader, reader.pairs(pair_count))
        tensors = reader.tensor_infos(tensor_count, _alignment(metadata, path.name))
        return cls(path, buffer, metadata, tensors)

    def raw(self, name: str) -> Bytes:
        """The tensor's blocks, a view of the mapped file."""
        return view(self._buffer, self.tensors[name])

    def release(self, name: str) -> None:
        release(self._buffer, self.tensors[name])


def _alignment(metadata: Metadata, file: str) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1 << 16 or value & (value - 1):
        raise CheckpointError(f"{file} is corrupt: general.alignment is no power of two up to 65536.")
    return value


class _Reader:
    """A cursor over the header; every read is checked against the end of the file."""

    def __init__(self, buffer: mmap.mmap, file: str) -> None:
        self.buffer = buffer
        self.size = len(buffer)
        self.file = file
        self.pos = 0

    def corrupt(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.file} is truncated or corrupt: {what}.")

    def header(self) -> tuple[int, int]:
        if bytes(self.buffer[:4]) != MAGIC:
            raise CheckpointError(f"{self.file} is not a GGUF file: it does not start with 'GGUF'.")
        self.pos = 4
        version = self.u32("the version")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            why = "is big-endian" if swapped in VERSIONS else f"has GGUF version {version}"
            raise CheckpointError(f"{self.file} {why}; Quire reads little-endian GGUF versions 2 and 3.")
        tensors, pairs = self.u64("the tensor count"), self.u64("the metadata count")
        # A tensor's entry takes at least 32 bytes, a pair's at least 13.
        if tensors > min(MAX_TENSORS, self.size // 32) or pairs > min(MAX_PAIRS, self.size // 13):
            raise self.corrupt(f"it claims {tensors} tensors and {pairs} metadata entries")
        return tensors, pairs

    def u32(self, what: str) -> int:
        return self._unpack(_U32, what)

    def u64(self, what: str) -> int:
        return self._unpack(_U64, what)

    def _unpack(self, kind: struct.Struct, what: str) -> int:
        if self.pos + kind.size > self.size:
            raise self.corrupt(f"it ends within {what}")
        (value,) = kind.unpack_from(self.buffer, self.pos)
        self.pos += kind.size
        return int(value)

    def string(self, what: str, limit: int) -> str:
        length = self.u64(what)
        if length > min(limit, self.size - self.pos):
            raise self.corrupt(f"{what} claims {length} bytes")
        raw = self.buffer[self.pos : self.pos + length]
        self.pos += length
        return self._decode(raw, what)

    def _decode(self, raw: bytes, what: str) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.corrupt(f"{what} is no valid UTF-8") from None

    def pairs(self, count: int) -> dict[str, _Value]:
        values: dict[str, _Value] = {}
        for _ in range(count):
            key = self.string("a metadata key", MAX_NAME)
            if key in values:
                raise self.corrupt(f"metadata key {key!r} occurs twice")
            values[key] = self._value(key)
        return values

    def _value(self, key: str) -> _Value:
        kind = self.u32(key)
        count = None
        if kind == ARRAY:
            kind, count = self.u32(key), self.u64(key)
            if count > MAX_ARRAY:
                raise self.corrupt(f"{key} claims {count} elements")
        start = self.pos
        self._skip(kind, 1 if count is None else count, key)
        return _Value(kind, start, count, self.pos)

    def _skip(self, kind: int, count: int, key: str) -> None:
        if kind == STRING:
            if count * 8 > self.size - self.pos:
                raise self.corrupt(f"{key} claims {count} strings")
            self._skip_strings(count, key)
            return
        if kind not in _SCALARS:
            raise self.corrupt(f"{key} has the unknown type {kind}")
        nbytes = _SCALARS[kind].itemsize * count
        if nbytes > self.size - self.pos:
            raise self.corrupt(f"{key} claims {count} elements")
        self.pos += nbytes

    def _skip_strings(self, count: int, key: str) -> None:
        pos, last, buffer, unpack = self.pos, self.size - 8, self.buffer, _U64.unpack_from
        for _ in range(count):
            if pos > last:
                raise self.corrupt(f"it ends within {key}")
            length = unpack(buffer, pos)[0]
            if length > MAX_STRING:
                raise self.corrupt(f"a string in {key} claims {length} bytes")
            pos += 8 + length
        if pos > self.size:
            raise self.corrupt(f"it ends within {key}")
        self.pos = pos

    def scalar(self, value: _Value, key: str) -> Any:
        if value.type == STRING:
            return self.strings(value.offset, value.end, 1, key)[0]
        return np.frombuffer(self.buffer, dtype=_SCALARS[value.type], count=1, offset=value.offset)[0].item()

    def strings(self, start: int, end: int, count: int, key: str) -> list[str]:
        """Strings that ``_skip_strings`` has walked over: their lengths are known to be right."""
        unpack: Callable[..., tuple[int]] = _U64.unpack_from
        span, pos, out = self.buffer[start:end], 0, []
        try:
            for _ in range(count):
                first = pos + 8
                pos = first + unpack(span, pos)[0]
                out.append(span[first:pos].decode())
        except UnicodeDecodeError:
            raise self.corrupt(f"{key} holds invalid UTF-8") from None
        return out

    def find_string(self, start: int, end: int, text: str) -> int | None:
        raw = text.encode()
        framed = _U64.pack(len(raw)) + raw
        unpack, buffer, pos, index = _U64.unpack_from, self.buffer, start, 0
        hit = buffer.find(framed, start, end)
        while hit >= 0:
            while pos < hit:
                pos += 8 + unpack(buffer, pos)[0]
                index += 1
            if pos == hit:
                return index
            hit = buffer.find(framed, pos, end)  # that hit straddled two strings
        return None

    def tensor_infos(self, count: int, alignment: int) -> dict[str, TensorInfo]:
        entries: dict[str, tuple[str, tuple[int, ...], int]] = {}
        for _ in range(count):
            name = self.string("a tensor name", MAX_NAME)
            if name in entries:
                raise self.corrupt(f"tensor {name!r} occurs twice")
            entries[name] = self._tensor_entry(name)
        start = -(-self.pos // alignment) * alignment
        tensors = {}
        for name, (kind, shape, offset) in entries.items():
            if offset % alignment:
                raise self.corrupt(f"tensor {name!r} is not aligned to {alignment} bytes")
            nbytes = tensor_nbytes(self.file, name, kind, shape)
            tensors[name] = TensorInfo(name, kind, shape, start + offset, nbytes)
        check_layout(self.file, list(tensors.values()), start, self.size)
        return tensors

    def _tensor_entry(self, name: str) -> tuple[str, tuple[int, ...], int]:
        dims = self.u32(name)
        if not 1 <= dims <= MAX_GGUF_DIMS:
            raise self.corrupt(f"tensor {name!r} claims {dims} dimensions")
        shape = tuple(reversed([self.u64(name) for _ in range(dims)]))
        if any(not 1 <= dim <= MAX_DIM for dim in shape):
            raise self.corrupt(f"tensor {name!r} claims the shape {list(shape)}")
        code, offset = self.u32(name), self.u64(name)
        if code not in GGUF_TYPES:
            if code not in GGUF_OTHER_TYPES:
                raise self.corrupt(f"tensor {name!r} has the unknown type {code}")
            raise CheckpointError(
                f"{self.file} holds {GGUF_OTHER_TYPES[code]} tensors, which Quire does not read; "
                "take a file in Q2_K to Q6_K, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, IQ4_XS, F16, BF16 or F32."
            )
        return GGUF_TYPES[code], shape, offset
