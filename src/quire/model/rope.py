"""Rotary position embedding (Su et al., 2021, arXiv:2104.09864): the table of cosines and sines."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from quire.model.spec import RopeSpec
from quire.weights.errors import CheckpointError

Scaling = Mapping[str, Any]


def cos_sin_table(rope: RopeSpec, positions: int) -> torch.Tensor:
    """float32 ``[positions, rotary_dim]``: cosines of the ``rotary_dim / 2`` frequencies, then their sines."""
    exponents = torch.arange(0, rope.rotary_dim, 2, dtype=torch.int64).float() / rope.rotary_dim
    scaling = dict(rope.scaling)
    frequencies = _SCALINGS[str(scaling.get("rope_type", "default"))](1.0 / rope.base**exponents, scaling)
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def check_scaling(rope: RopeSpec) -> None:
    """Raises ``CheckpointError`` for a kind of scaling that is not supported or lacks its numbers."""
    scaling = dict(rope.scaling)
    kind = str(scaling.get("rope_type", "default"))
    if kind not in _SCALINGS:
        raise CheckpointError(f"The rope scaling {kind[:40]!r} is not supported; supported are {', '.join(_SCALINGS)}.")
    try:
        _SCALINGS[kind](torch.ones(rope.rotary_dim // 2), scaling)
    except (KeyError, TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise CheckpointError(f"The rope scaling {kind!r} of the model's config lacks or spoils a number.") from error


def _default(frequencies: torch.Tensor, scaling: Scaling) -> torch.Tensor:
    return frequencies


def _linear(frequencies: torch.Tensor, scaling: Scaling) -> torch.Tensor:
    return frequencies / float(scaling["factor"])


def _llama3(frequencies: torch.Tensor, scaling: Scaling) -> torch.Tensor:
    """Llama 3.1's scaling: long wavelengths are stretched by ``factor``, short ones kept, those between blended."""
    factor, low, high = (float(scaling[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(scaling["original_max_position_embeddings"])
    wavelength = 2 * math.pi / frequencies
    blend = ((original / wavelength - low) / (high - low)).clamp(0, 1)
    return frequencies / factor * (1 - blend) + frequencies * blend


def _factors(frequencies: torch.Tensor, scaling: Scaling) -> torch.Tensor:
    """A divisor for each frequency, as GGUF files carry them."""
    return frequencies / torch.tensor(scaling["factors"], dtype=torch.float32)


_SCALINGS: dict[str, Callable[[torch.Tensor, Scaling], torch.Tensor]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "factors": _factors,
}
