"""GGUF's block formats, unpacked into kernel layouts without loss.

A block holds its scales and its integers side by side; here they are taken apart. What ``dequantize`` gives equals,
in float32, llama.cpp's own formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from quire.ops.layouts import Dense, GroupedInt, Layout
from quire.weights.errors import CheckpointError
from quire.weights.tensor_types import TYPES
from quire.weights.tensors import Bytes, RawTensor

Scales = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.uint8] | npt.NDArray[np.int8]
_DENSE = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def unpack(tensor: RawTensor) -> Layout:
    """The layout of a matrix ``[N, K]``. Raises ``CheckpointError`` for types without one and scales that are no numbers."""
    if len(tensor.shape) != 2:
        raise CheckpointError(f"A weight has the shape {list(tensor.shape)} where a matrix is needed.")
    if tensor.type in _DENSE:
        return Dense(_plain(tensor))
    if tensor.type not in _UNPACK:
        raise CheckpointError(f"Weights of the type {tensor.type} cannot be computed with.")
    blocks = tensor.data.reshape(-1, TYPES[tensor.type].nbytes)
    return _UNPACK[tensor.type](blocks, tensor.shape[0])


def dequantize(tensor: RawTensor) -> torch.Tensor:
    """Any tensor as float32 in its own shape: norms, biases, embeddings."""
    if tensor.type in _DENSE:
        return _plain(tensor).float()
    matrix = RawTensor(tensor.type, (math.prod(tensor.shape[:-1]), tensor.shape[-1]), tensor.data)
    return unpack(matrix).dequantize().view(tensor.shape)


def _plain(tensor: RawTensor) -> torch.Tensor:
    # A copy: the mapped file is read-only.
    return torch.from_numpy(tensor.data.copy()).view(_DENSE[tensor.type]).view(tensor.shape)


def _q4_0(blocks: Bytes, rows: int) -> GroupedInt:
    d = _half(blocks, 0)
    return _grouped(_nibbles(blocks[:, 2:]), d, d.astype(np.float32) * np.float32(-8), 4, 32, rows)


def _q4_1(blocks: Bytes, rows: int) -> GroupedInt:
    return _grouped(_nibbles(blocks[:, 4:]), _half(blocks, 0), _half(blocks, 2), 4, 32, rows)


def _q5_0(blocks: Bytes, rows: int) -> GroupedInt:
    q = _nibbles(blocks[:, 6:])
    q |= _bits(blocks[:, 2:6]) << 4
    return _grouped(q.view(np.int8) - np.int8(16), _half(blocks, 0), None, 8, 32, rows)


def _q5_1(blocks: Bytes, rows: int) -> GroupedInt:
    q = _nibbles(blocks[:, 8:])
    q |= _bits(blocks[:, 4:8]) << 4
    return _grouped(q.view(np.int8), _half(blocks, 0), _half(blocks, 2), 8, 32, rows)


def _q8_0(blocks: Bytes, rows: int) -> GroupedInt:
    return _grouped(np.ascontiguousarray(blocks[:, 2:]).view(np.int8), _half(blocks, 0), None, 8, 32, rows)


def _q4_k(blocks: Bytes, rows: int) -> GroupedInt:
    scale, minimum = _k_scales(blocks)
    return _grouped(_k_nibbles(blocks[:, 16:]), scale, minimum, 4, 32, rows)


def _q5_k(blocks: Bytes, rows: int) -> GroupedInt:
    scale, minimum = _k_scales(blocks)
    q = _k_nibbles(blocks[:, 48:]).reshape(-1, 8, 32)
    high = blocks[:, 16:48]
    for i in range(8):
        q[:, i] |= ((high >> i) & 1) << 4
    return _grouped(q.view(np.int8), scale, minimum, 8, 32, rows)


def _q6_k(blocks: Bytes, rows: int) -> GroupedInt:
    low = blocks[:, :128].reshape(-1, 2, 1, 64)
    high = blocks[:, 128:192].reshape(-1, 2, 32)
    q = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    for i in range(4):
        q[:, :, i] |= ((high >> (2 * i)) & 3) << 4
    scale = _half(blocks, 208).astype(np.float32) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return _grouped(q.view(np.int8) - np.int8(32), scale, None, 8, 16, rows)


_UNPACK: dict[str, Callable[[Bytes, int], GroupedInt]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}


def _half(blocks: Bytes, at: int) -> npt.NDArray[np.float16]:
    """The float16 at byte ``at`` of each block: ``[blocks, 1]``."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2")


def _nibbles(packed: Bytes) -> npt.NDArray[np.uint8]:
    """Sixteen bytes a block: the low halves are values 0..15, the high halves 16..31. ``[blocks, 32]``."""
    out = np.empty((len(packed), 2, 16), np.uint8)
    np.bitwise_and(packed, 15, out=out[:, 0])
    np.right_shift(packed, 4, out=out[:, 1])
    return out.reshape(-1, 32)


def _k_nibbles(packed: Bytes) -> npt.NDArray[np.uint8]:
    """128 bytes a block: each 32 bytes hold two groups, one in the low halves, one in the high. ``[blocks, 256]``."""
    chunks = packed.reshape(-1, 4, 32)
    out = np.empty((len(packed), 4, 2, 32), np.uint8)
    np.bitwise_and(chunks, 15, out=out[:, :, 0])
    np.right_shift(chunks, 4, out=out[:, :, 1])
    return out.reshape(-1, 256)


def _bits(packed: Bytes) -> npt.NDArray[np.uint8]:
    return np.unpackbits(packed, axis=1, bitorder="little")


def _k_scales(blocks: Bytes) -> tuple[Scales, Scales]:
    """Scale and minimum of the 8 groups of a super-block: 6-bit integers (packed in 12 bytes) times a float16 each."""
    first, second, third = (blocks[:, at : at + 4] for at in (4, 8, 12))
    scale = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=1)
    minimum = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=1)
    d, dmin = _half(blocks, 0).astype(np.float32), _half(blocks, 2).astype(np.float32)
    return d * scale.astype(np.float32), -(dmin * minimum.astype(np.float32))


def _grouped(q: Integers, scale: Scales, minimum: Scales | None, bits: int, group: int, rows: int) -> GroupedInt:
    return GroupedInt(
        q=torch.from_numpy(q).view(rows, -1),
        scale=_narrowest(scale, rows),
        minimum=None if minimum is None else _narrowest(minimum, rows),
        bits=bits,
        group=group,
    )


def _narrowest(values: Scales, rows: int) -> torch.Tensor:
    """float16 where that is exact, else float32."""
    if not np.isfinite(values).all():
        raise CheckpointError("The checkpoint is corrupt: the scales of a quantised tensor are not finite numbers.")
    if values.dtype != np.float16:
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        values = half if np.array_equal(half, values) else values
    return torch.from_numpy(values).view(rows, -1)
