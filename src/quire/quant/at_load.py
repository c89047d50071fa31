"""Quantising plain weights as they are read, a few rows at a time: round to nearest, no calibration."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from quire.ops.layouts import Codebook, Dense, Fp8, GroupedInt, Int8Channel, Layout
from quire.ops.shapes import ActivationQuant
from quire.quant.formats.fp8 import MX_BLOCK
from quire.quant.grouped import MIN_GROUP

_CHUNK = {"cpu": 1 << 19, "cuda": 1 << 26}  # weights that are float32 at a time: a processor's cache, or a busy GPU
_FP8_MAX = 448.0
_INT4_GROUP, _NF4_GROUP = 128, 64
_FP8_BLOCK = 128
_BITS = {
    "int8": 8.0,
    "fp8": 8.0,
    "fp8_per_tensor": 8.0,
    "fp8_per_block": 8.0 + 32 / _FP8_BLOCK,  # each output has scales of its own in the kernels' order
    "mxfp8": 8.0 + 32 / MX_BLOCK[1],
    "int4": 4.0 + 24 / _INT4_GROUP,
    "nf4": 4.0 + 32 / _NF4_GROUP,
}
_DEVICE_BITS = _BITS | {"int4": 4.0 + 32 / _INT4_GROUP}  # zeros are as wide as scales there
# The 16 values of nf4, quantiles of a normal distribution (QLoRA, Dettmers et al. 2023, appendix E).
NF4 = torch.tensor(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]
)  # fmt: skip
_NF4_BORDERS: list[float] = ((NF4[1:] + NF4[:-1]) / 2).tolist()


def nbytes(weights: int, method: str, device: torch.device) -> int:
    """Bytes that so many weights take, quantised, on a device."""
    return int(weights * (_BITS if device.type == "cpu" else _DEVICE_BITS)[method] / 8)


def quantize(weight: torch.Tensor, method: str) -> Layout:
    """``weight [N, K]`` by a method of ``METHODS``; plain where its inputs can't be cut into groups."""
    return METHODS[method](weight)


def _int8(weight: torch.Tensor) -> Layout:
    scale = weight.abs().amax(dim=1).float().clamp_(min=1e-12) / 127
    q = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    for rows in _chunks(weight):
        q[rows] = (weight[rows].float() / scale[rows, None]).round_()
    return Int8Channel(q, scale)


def _fp8(weight: torch.Tensor) -> Layout:
    return _fp8_blocks(weight, (1, weight.shape[1]), ActivationQuant("fp8"))


def _fp8_per_tensor(weight: torch.Tensor) -> Layout:
    return _fp8_blocks(weight, (weight.shape[0], weight.shape[1]), ActivationQuant("fp8"))


def _fp8_per_block(weight: torch.Tensor) -> Layout:
    return _fp8_blocks(weight, (_FP8_BLOCK, _FP8_BLOCK), ActivationQuant("fp8", group=_FP8_BLOCK))


def _mxfp8(weight: torch.Tensor) -> Layout:
    return Dense(weight) if weight.shape[1] % MX_BLOCK[1] else _fp8_blocks(weight, MX_BLOCK, None, power_of_two=True)


def _fp8_blocks(
    weight: torch.Tensor, block: tuple[int, int], activation: ActivationQuant | None, power_of_two: bool = False
) -> Fp8:
    """A scale for each ``block`` of outputs and inputs, that takes its largest weight to the largest float.

    ``power_of_two``: the least power of two that keeps all within range.
    """
    scale = _largest(weight, block).clamp_(min=1e-12) / _FP8_MAX
    if power_of_two:
        part, exponent = torch.frexp(scale)  # scale = part * 2 ** exponent, part from 0.5 up to 1
        scale = torch.ldexp(torch.ones_like(scale), exponent - (part == 0.5).int())
    layout = Fp8(torch.empty(weight.shape, dtype=torch.float8_e4m3fn, device=weight.device), scale, block, activation)
    of_rows = layout.row_scale()
    for rows in _chunks(weight):
        step = of_rows[rows]
        if step.shape[1] > 1:
            step = step.repeat_interleave(block[1], dim=1)[:, : weight.shape[1]]
        layout.weight[rows] = (weight[rows].float() / step).clamp_(-_FP8_MAX, _FP8_MAX).to(layout.weight.dtype)
    return layout


def _largest(weight: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """The largest magnitude in each block; those at the ends may be smaller."""
    (n, k), (high, wide) = weight.shape, block
    whole = F.pad(weight, (0, -k % wide, 0, -n % high)) if n % high or k % wide else weight
    return whole.abs().reshape(-(-n // high), high, -(-k // wide), wide).amax(dim=(1, 3)).float()


def _int4(weight: torch.Tensor) -> Layout:
    n, k = weight.shape
    if (group := math.gcd(k, _INT4_GROUP)) < MIN_GROUP:
        return Dense(weight)
    q = torch.empty((n, k // group, group), dtype=torch.uint8, device=weight.device)
    scale = torch.empty((n, k // group), dtype=torch.float16, device=weight.device)
    zero = torch.empty((n, k // group), dtype=torch.uint8, device=weight.device)
    for rows in _chunks(weight):
        w = weight[rows].float().view(-1, k // group, group)
        low, high = w.amin(dim=2).clamp_(max=0), w.amax(dim=2).clamp_(min=0)
        scale[rows] = ((high - low) / 15).clamp_(6.2e-5, 65504)
        step = scale[rows].float()
        zero[rows] = (-low / step).round_().clamp_(0, 15)
        q[rows] = (w / step[..., None]).round_().add_(zero[rows][..., None]).clamp_(0, 15)
    return GroupedInt(q.view(n, k), scale, None, 4, group, zero)


def _nf4(weight: torch.Tensor) -> Layout:
    n, k = weight.shape
    if (group := math.gcd(k, _NF4_GROUP)) < MIN_GROUP:
        return Dense(weight)
    q = torch.empty((n, k // group, group), dtype=torch.uint8, device=weight.device)
    scale = torch.empty((n, k // group), device=weight.device)
    for rows in _chunks(weight):
        w = weight[rows].float().view(-1, k // group, group)
        scale[rows] = w.abs().amax(dim=2)
        w = w / scale[rows][..., None].clamp(min=1e-38)
        codes = torch.zeros(w.shape, dtype=torch.uint8, device=w.device)
        for border in _NF4_BORDERS:  # several times as fast as torch.bucketize
            codes += w > border
        q[rows] = codes
    return Codebook(q.view(n, k), NF4.to(weight.device), scale, group)


def _chunks(weight: torch.Tensor) -> list[slice]:
    step = max(1, _CHUNK[weight.device.type] // weight.shape[1])
    return [slice(start, start + step) for start in range(0, weight.shape[0], step)]


METHODS: dict[str, Callable[[torch.Tensor], Layout]] = {
    "int8": _int8,
    "int4": _int4,
    "nf4": _nf4,
    "fp8": _fp8,
    "fp8_per_tensor": _fp8_per_tensor,
    "fp8_per_block": _fp8_per_block,
    "mxfp8": _mxfp8,
}
