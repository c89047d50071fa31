"""GGUF's block formats, unpacked into kernel layouts without loss.

A block holds its scales and its integers side by side; here they are taken apart. What ``dequantize`` gives equals,
in float32, llama.cpp's own formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from quire.ops.layouts import Codebook, Dense, GroupedInt, Layout
from quire.weights.errors import CheckpointError
from quire.weights.tensor_types import TYPES
from quire.weights.tensors import Bytes, RawTensor, TensorInfo

Scales = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.uint8] | npt.NDArray[np.int8]
_Bits = npt.NDArray[np.integer[Any]]
Fill = Callable[[Bytes, Bytes], None]
CHUNK = 1 << 18  # values unpacked at a time
_PAIR = 4  # bytes of a group's scale and its minimum on a GPU
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
    scales = form.scales(blocks)

    def matrix(values: Scales | Integers | None) -> torch.Tensor | None:
        return None if values is None else torch.from_numpy(_finite(values)).view(tensor.shape[0], -1)

    q = torch.from_numpy(_integers(form, blocks, TYPES[tensor.type].block)).view(tensor.shape)
    scale = torch.from_numpy(_finite(scales.scale)).view(len(q), -1)
    if form.table is not None:
        return Codebook(q, torch.tensor(form.table), scale, form.group, matrix(scales.super_scale))
    return GroupedInt(
        q=q,
        scale=scale,
        minimum=matrix(scales.minimum),
        bits=form.bits,
        group=form.group,
        zero=form.zero,
        super_scale=matrix(scales.super_scale),
        super_minimum=matrix(scales.super_minimum),
    )


def loaded_nbytes(tensor: TensorInfo, device: torch.device) -> int:
    """Bytes of a tensor once it is packed for the kernels of ``device``."""
    form = _FORMS.get(tensor.type)
    if form is None:
        return tensor.nbytes
    if device.type == "cpu":
        return int(tensor.nbytes * form.growth)
    numbers = math.prod(tensor.shape)
    return numbers * form.bits // 8 + numbers // form.group * _PAIR


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
    return out.view(np.int8) if form.bits == 8 else out


def _finite(values: Any) -> Any:
    if values.dtype == np.float16 and not np.isfinite(values).all():
        raise CheckpointError("The checkpoint is corrupt: the scales of a quantised tensor are not finite numbers.")
    return values


# Integers of each format: blocks [n, bytes], out [n, values] uint8 (Q8_0: the bits of an int8).


def _q4(at: int) -> Fill:
    return lambda blocks, out: _nibbles(blocks[:, at:], out)


def _q5(at: int) -> Fill:
    def fill(blocks: Bytes, out: Bytes) -> None:
        _nibbles(blocks[:, at + 4 :], out)
        out |= np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little") << 4

    return fill


def _q8_0(blocks: Bytes, out: Bytes) -> None:
    out[:] = blocks[:, 2:]


def _q2_k(blocks: Bytes, out: Bytes) -> None:
    _crumbs(blocks[:, 16:80], out)


def _q3_k(blocks: Bytes, out: Bytes) -> None:
    _crumbs(blocks[:, 32:96], out)
    groups, high = out.reshape(-1, 8, 32), blocks[:, :32]
    for i in range(8):
        groups[:, i] |= ((high >> i) & 1) << 2


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


def _iq4_xs(blocks: Bytes, out: Bytes) -> None:
    _nibbles(blocks[:, 8:].reshape(-1, 16), out)


def _crumbs(packed: Bytes, out: Bytes) -> None:
    """64 bytes a block: each 32 bytes hold four runs of 32 values, two bits each, the lowest bits first."""
    chunks, runs = packed.reshape(-1, 2, 32), out.reshape(-1, 2, 4, 32)
    for i in range(4):
        np.bitwise_and(chunks >> (2 * i), 3, out=runs[:, :, i])


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


# Scales of each format, one a group (of super-blocks: and one a block).


class _Scales(NamedTuple):
    scale: Scales | Integers
    minimum: Scales | Integers | None = None
    super_scale: Scales | None = None
    super_minimum: Scales | None = None


def _half(blocks: Bytes, at: int) -> Scales:
    """The float16 at byte ``at`` of each block: ``[blocks, 1]``."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2")


def _scale_only(blocks: Bytes) -> _Scales:
    return _Scales(_half(blocks, 0))


def _scale_and_minimum(blocks: Bytes) -> _Scales:
    return _Scales(_half(blocks, 0), _half(blocks, 2))


def _q2_k_scales(blocks: Bytes) -> _Scales:
    """Scale and minimum of 16 groups, a half of a byte each, times a float16 each."""
    return _Scales(blocks[:, :16] & 15, blocks[:, :16] >> 4, _half(blocks, 80), -_half(blocks, 82))


def _q3_k_scales(blocks: Bytes) -> _Scales:
    """Scales of 16 groups, 6 bits less 32: 8 bytes hold two low halves each, then 4 bytes four upper pairs of bits."""
    low, high = blocks[:, 96:104], blocks[:, 104:108]
    return _Scales(_six_bits((low & 15, low >> 4), [high >> i for i in (0, 2, 4, 6)]), None, _half(blocks, 108))


def _iq4_xs_scales(blocks: Bytes) -> _Scales:
    """Scales of 8 groups, 6 bits less 32: neighbours share a byte of 4 low bits each, all two bytes of upper pairs."""
    pairs = [((blocks[:, 4:8] >> i) & 15)[..., None] for i in (0, 4)]
    low = np.concatenate(pairs, axis=2).reshape(len(blocks), 8)
    upper = np.ascontiguousarray(blocks[:, 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16)
    return _Scales(_six_bits([low], [upper]), None, _half(blocks, 0))


def _six_bits(low: Sequence[_Bits], high: Sequence[_Bits]) -> Integers:
    """Signed integers: 4 bits of ``low`` and above them the lowest 2 of ``high``, less 32."""
    values = np.concatenate(low, axis=1) | (np.concatenate(high, axis=1) & 3) << 4
    return values.astype(np.int8) - np.int8(32)


def _k_scales(blocks: Bytes) -> _Scales:
    """Scale and minimum of the 8 groups of a super-block: 6-bit integers, packed in 12 bytes, times a float16 each."""
    first, second, third = (blocks[:, at : at + 4] for at in (4, 8, 12))
    scale = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=1)
    minimum = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=1)
    return _Scales(scale, minimum, _half(blocks, 0), -_half(blocks, 2))


def _q6_k_scales(blocks: Bytes) -> _Scales:
    return _Scales(np.ascontiguousarray(blocks[:, 192:208]).view(np.int8), None, _half(blocks, 208))


@dataclass(frozen=True)
class _Form:
    bits: int
    group: int
    integers: Fill
    scales: Callable[[Bytes], _Scales]
    zero: int = 0
    table: tuple[float, ...] | None = None  # what the integers are codes of
    growth: float = 1.0  # how many times as many bytes as in the file it takes for the CPU's kernels


_IQ4 = (-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0)
_FORMS: dict[str, _Form] = {
    "Q4_0": _Form(4, 32, _q4(2), _scale_only, zero=8),
    "Q4_1": _Form(4, 32, _q4(4), _scale_and_minimum),
    "Q5_0": _Form(5, 32, _q5(2), _scale_only, zero=16),
    "Q5_1": _Form(5, 32, _q5(4), _scale_and_minimum),
    "Q8_0": _Form(8, 32, _q8_0, _scale_only),
    "Q2_K": _Form(2, 16, _q2_k, _q2_k_scales, growth=1.19),  # scales and minimums take a byte each
    "Q3_K": _Form(3, 16, _q3_k, _q3_k_scales, zero=4, growth=1.33),  # integers take 4 bits, scales a byte
    "Q4_K": _Form(4, 32, _q4_k, _k_scales),
    "Q5_K": _Form(5, 32, _q5_k, _k_scales),
    "Q6_K": _Form(6, 16, _q6_k, _q6_k_scales, zero=32),
    "IQ4_NL": _Form(4, 32, _q4(2), _scale_only, table=_IQ4),
    "IQ4_XS": _Form(4, 32, _iq4_xs, _iq4_xs_scales, table=_IQ4),
}
