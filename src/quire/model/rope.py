"""Rotary position embedding (Su et al., 2021, arXiv:2104.09864): the table of cosines and sines."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from quire.model.rope_scaling import ORIGINAL, spoilt, yarn_mscale
from quire.model.spec import RopeSpec

Scaling = Mapping[str, Any]
_FAR = 1 << 24  # beyond the length of any sequence


def cos_sin_table(rope: RopeSpec, positions: int) -> torch.Tensor:
    """float32 ``[positions, rotary_dim]``: cosines of the ``rotary_dim / 2`` frequencies, then their sines.

    Scalings that depend on a sequence's length (dynamic, longrope) take ``positions`` for it, so that all sequences,
    and so their cached pages, share one table.
    """
    frequencies, factor = _frequencies(rope, positions)
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies)
    return torch.cat([angles.cos(), angles.sin()], dim=1) * factor


def _frequencies(rope: RopeSpec, length: float) -> tuple[torch.Tensor, float]:
    """Radians a position, ``[rotary_dim / 2]``, and what cosines and sines are multiplied by."""
    exponents = torch.arange(0, rope.rotary_dim, 2, dtype=torch.int64).float() / rope.rotary_dim
    scaling = dict(rope.scaling)
    kind = str(scaling.get("rope_type", "default"))
    frequencies = _SCALINGS[kind](1.0 / rope.base**exponents, scaling | {"base": rope.base, "length": length})
    return frequencies, _FACTORS[kind](scaling) if kind in _FACTORS else 1.0


def check_scaling(rope: RopeSpec) -> None:
    """Raises ``CheckpointError`` for a scaling that lacks its numbers."""
    kind = str(dict(rope.scaling).get("rope_type", "default"))
    try:
        for length in (1, _FAR):
            frequencies, factor = _frequencies(rope, length)
            if not bool((frequencies.isfinite() & (frequencies > 0)).all()) or not math.isfinite(factor):
                raise ValueError("a frequency or a factor is no positive number")
    except (KeyError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise spoilt(kind) from error


def _default(frequencies: torch.Tensor, scaling: Scaling) -> torch.Tensor:
    return frequencies


def _linear(frequencies: torch.Tensor, scaling: Scaling) -> torch.Tensor:
    return frequencies / float(scaling["factor"])


def _dynamic(frequencies: torch.Tensor, scaling: Scaling) -> torch.Tensor:
    """The base grows with the length, so that the slowest frequency is stretched as linear scaling would."""
    factor, original, rotary_dim = float(scaling["factor"]), float(scaling[ORIGINAL]), 2 * len(frequencies)
    stretch = factor * max(float(scaling["length"]), original) / original - (factor - 1)
    growth = math.pow(stretch, rotary_dim / (rotary_dim - 2))
    return frequencies / growth ** (torch.arange(0, rotary_dim, 2).float() / rotary_dim)


def _longrope(frequencies: torch.Tensor, scaling: Scaling) -> torch.Tensor:
    """LongRoPE (arXiv:2402.13753): a divisor for each frequency, of two sets: for short and for long contexts."""
    long = float(scaling["length"]) > float(scaling[ORIGINAL])
    return _divided(frequencies, scaling["long_factor" if long else "short_factor"])


def _llama3(frequencies: torch.Tensor, scaling: Scaling) -> torch.Tensor:
    """Llama 3.1's scaling: long wavelengths are stretched by ``factor``, short ones kept, those between blended."""
    factor, low, high = (float(scaling[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(scaling[ORIGINAL])
    wavelength = 2 * math.pi / frequencies
    blend = ((original / wavelength - low) / (high - low)).clamp(0, 1)
    return frequencies / factor * (1 - blend) + frequencies * blend


def _yarn(frequencies: torch.Tensor, scaling: Scaling) -> torch.Tensor:
    """YaRN (arXiv:2309.00071): slow frequencies are stretched, fast ones kept, those between blended."""
    base, original = float(scaling["base"]), float(scaling[ORIGINAL])

    def index(turns: float) -> float:
        """Of the frequency that turns so often over the original length."""
        return len(frequencies) * math.log(original / (turns * 2 * math.pi)) / math.log(base)

    low, high = index(float(scaling.get("beta_fast", 32))), index(float(scaling.get("beta_slow", 1)))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * len(frequencies) - 1)
    span = high - low if high > low else 0.001
    stretched = ((torch.arange(len(frequencies), dtype=torch.float32) - low) / span).clamp(0, 1)
    return frequencies / float(scaling["factor"]) * stretched + frequencies * (1 - stretched)


def _yarn_factor(scaling: Scaling) -> float:
    """What the cosines and sines are multiplied by."""
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    factor, own, all_dims = (float(scaling.get(key) or 0) for key in ("factor", "mscale", "mscale_all_dim"))
    return yarn_mscale(factor, own) / yarn_mscale(factor, all_dims) if own and all_dims else yarn_mscale(factor)


def _longrope_factor(scaling: Scaling) -> float:
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    factor = float(scaling["factor"])
    return math.sqrt(1 + math.log(factor) / math.log(float(scaling[ORIGINAL]))) if factor > 1 else 1.0


def _factors(frequencies: torch.Tensor, scaling: Scaling) -> torch.Tensor:
    """A divisor for each frequency, as GGUF files carry them."""
    return _divided(frequencies, scaling["factors"])


def _divided(frequencies: torch.Tensor, divisors: Sequence[float]) -> torch.Tensor:
    if len(divisors) != len(frequencies):
        raise ValueError(f"{len(divisors)} factors for {len(frequencies)} frequencies")
    return frequencies / torch.tensor(divisors, dtype=torch.float32)


_SCALINGS: dict[str, Callable[[torch.Tensor, Scaling], torch.Tensor]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "factors": _factors,
}
_FACTORS: dict[str, Callable[[Scaling], float]] = {"yarn": _yarn_factor, "longrope": _longrope_factor}
