"""GGUF's block formats, unpacked into kernel layouts without loss.

A block holds its scales and its integers side by side; here they are taken apart. What ``dequantize`` gives equals,
in float32, llama.cpp's own formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
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
Fill = Callable[[Bytes, Bytes], None]
CHUNK = 1 << 18  # values unpacked at a time
_DENSE = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def unpack(tensor: RawTensor) -> Layout:
    """The layout of a matrix ``[N, K]``. Raises ``CheckpointError`` for a type without one, or non-finite scales."""
    if len(tensor.shape) != 2:
        raise CheckpointError(f"A weight has the shape {list(tensor.shape)} where a matrix is needed.")
    if tensor.type in _DENSE:
        return Dense(_plain(tensor))
    if tensor.type not in _FORMS:
        raise CheckpointError(f"Weights of the type {tensor.type} cannot be computed with.")
    form = _FORMS[tensor.type]
    blocks = tensor.data.reshape(-1, TYPES[tensor.type].nbytes)
    rows = tensor.shape[0]
    scale, minimum = _narrowest(*form.scales(blocks))
    return GroupedInt(
        q=torch.from_numpy(_integers(form, blocks, TYPES[tensor.type].block)).view(rows, -1),
        scale=torch.from_numpy(scale).view(rows, -1),
        minimum=None if minimum is None else torch.from_numpy(minimum).view(rows, -1),
        bits=form.bits,
        group=form.group,
    )


def dequantize(tensor: RawTensor) -> torch.Tensor:
    """Any tensor as float32 in its own shape: norms, biases, embeddings."""
    if tensor.type in _DENSE:
        return _plain(tensor).float()
    matrix = RawTensor(tensor.type, (math.prod(tensor.shape[:-1]), tensor.shape[-1]), tensor.data)
    return unpack(matrix).dequantize().view(tensor.shape)


def _plain(tensor: RawTensor) -> torch.Tensor:
    # A copy: the mapped file is read-only. Integers of the same width: numpy has no bfloat16.
    integers = tensor.data.copy().view("<i4" if tensor.type == "F32" else "<i2")
    return torch.from_numpy(integers).view(_DENSE[tensor.type]).view(tensor.shape)


def _integers(form: _Form, blocks: Bytes, values: int) -> Integers:
    """All blocks' integers, computed by pieces that stay in the processor's cache."""
    out = np.empty((len(blocks), values), np.uint8)
    for start in range(0, len(blocks), step := CHUNK // values):
        form.integers(blocks[start : start + step], out[start : start + step])
    return out if form.bits == 4 else out.view(np.int8)


def _narrowest(scale: Scales, minimum: Scales | None) -> tuple[Scales, Scales | None]:
    """Both in float16 where that is exact, else both in float32."""
    if minimum is not None and minimum.dtype != scale.dtype:
        with np.errstate(over="ignore"):
            half = minimum.astype(np.float16)
        if np.array_equal(half, minimum):
            minimum = half
        else:
            scale = scale.astype(np.float32)
    if not np.isfinite(scale).all() or (minimum is not None and not np.isfinite(minimum).all()):
        raise CheckpointError("The checkpoint is corrupt: the scales of a quantised tensor are not finite numbers.")
    return scale, minimum


# Integers of each format: blocks [n, bytes], out [n, values] uint8 (8-bit forms: the bits of an int8).


def _q4(at: int) -> Fill:
    return lambda blocks, out: _nibbles(blocks[:, at:], out)


def _q5(at: int, offset: int) -> Fill:
    def fill(blocks: Bytes, out: Bytes) -> None:
        _nibbles(blocks[:, at + 4 :], out)
        out |= np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little") << 4
        if offset:
            np.subtract(out, offset, out=out)

    return fill


def _q8_0(blocks: Bytes, out: Bytes) -> None:
    out[:] = blocks[:, 2:]


def _q4_k(blocks: Bytes, out: Bytes) -> None:
    _wide_nibbles(blocks[:, 16:], out.reshape(-1, 4, 2, 32))


def _q5_k(blocks: Bytes, out: Bytes) -> None:
    _wide_nibbles(blocks[:, 48:], out.reshape(-1, 4, 2, 32))
    groups, high = out.reshape(-1, 8, 32), blocks[:, 16:48]
    for i in range(8):
        groups[:, i] |= ((high >> i) & 1) << 4


def _q6_k(blocks: Bytes, out: Bytes) -> None:
    low, high = blocks[:, :128].reshape(-1, 2, 64), blocks[:, 128:192].reshape(-1, 2, 32)
    halves, groups = out.reshape(-1, 2, 2, 64), out.reshape(-1, 2, 4, 32)
    np.bitwise_and(low, 15, out=halves[:, :, 0])
    np.right_shift(low, 4, out=halves[:, :, 1])
    for i in range(4):
        groups[:, :, i] |= ((high >> (2 * i)) & 3) << 4
    np.subtract(out, 32, out=out)


def _nibbles(packed: Bytes, out: Bytes) -> None:
    """Sixteen bytes a block: the low halves are values 0..15, the high halves 16..31."""
    halves = out.reshape(-1, 2, 16)
    np.bitwise_and(packed, 15, out=halves[:, 0])
    np.right_shift(packed, 4, out=halves[:, 1])


def _wide_nibbles(packed: Bytes, out: Bytes) -> None:
    """128 bytes a block: each 32 bytes hold two groups, one in the low halves, one in the high."""
    chunks = packed.reshape(-1, 4, 32)
    np.bitwise_and(chunks, 15, out=out[:, :, 0])
    np.right_shift(chunks, 4, out=out[:, :, 1])


# Scales and minima of each format, one a group.


def _half(blocks: Bytes, at: int) -> Scales:
    """The float16 at byte ``at`` of each block: ``[blocks, 1]``."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2")


def _scale_only(blocks: Bytes) -> tuple[Scales, None]:
    return _half(blocks, 0), None


def _scale_and_minimum(blocks: Bytes) -> tuple[Scales, Scales]:
    return _half(blocks, 0), _half(blocks, 2)


def _centred(blocks: Bytes) -> tuple[Scales, Scales]:
    """Q4_0 is ``d * (q - 8)``."""
    d = _half(blocks, 0)
    return d, d.astype(np.float32) * np.float32(-8)


def _k_scales(blocks: Bytes) -> tuple[Scales, Scales]:
    """Scale and minimum of the 8 groups of a super-block: 6-bit integers (packed in 12 bytes) times a float16 each."""
    first, second, third = (blocks[:, at : at + 4] for at in (4, 8, 12))
    scale = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=1)
    minimum = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=1)
    d, dmin = _half(blocks, 0).astype(np.float32), _half(blocks, 2).astype(np.float32)
    return d * scale.astype(np.float32), -(dmin * minimum.astype(np.float32))


def _q6_k_scales(blocks: Bytes) -> tuple[Scales, None]:
    return _half(blocks, 208).astype(np.float32) * blocks[:, 192:208].view(np.int8).astype(np.float32), None


@dataclass(frozen=True)
class _Form:
    bits: int
    group: int
    integers: Fill
    scales: Callable[[Bytes], tuple[Scales, Scales | None]]


_FORMS: dict[str, _Form] = {
    "Q4_0": _Form(4, 32, _q4(2), _centred),
    "Q4_1": _Form(4, 32, _q4(4), _scale_and_minimum),
    "Q5_0": _Form(8, 32, _q5(2, offset=16), _scale_only),
    "Q5_1": _Form(8, 32, _q5(4, offset=0), _scale_and_minimum),
    "Q8_0": _Form(8, 32, _q8_0, _scale_only),
    "Q4_K": _Form(4, 32, _q4_k, _k_scales),
    "Q5_K": _Form(8, 32, _q5_k, _k_scales),
    "Q6_K": _Form(8, 16, _q6_k, _q6_k_scales),
}
