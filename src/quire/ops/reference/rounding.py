"""Rounding a layer's inputs to 8 bits and back, as checkpoints ask that were made for such arithmetic.

The rules are compressed-tensors': scales from the largest value, integers to nearest, ties to even.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from quire.ops.shapes import ActivationQuant

_FP8_MAX = 448.0


def rounded(x: torch.Tensor, how: ActivationQuant | None) -> torch.Tensor:
    """``x [T, K]`` as the product sees it. Rows with infinities stay as they are."""
    if how is None:
        return x
    inputs, group = x.shape[1], how.group or x.shape[1]
    groups = F.pad(x, (0, -inputs % group)).unflatten(1, (-1, group))
    scale, zero = _scale_and_zero(groups, how)
    q = groups / scale
    if how.kind == "int8":
        q = (q + zero).round().clamp(-128, 127) - zero
    else:
        q = q.clamp(-_FP8_MAX, _FP8_MAX).to(torch.float8_e4m3fn).float()
    return torch.where(scale.isfinite() & (scale > 0), q * scale, groups).flatten(1)[:, :inputs]


def _scale_and_zero(x: torch.Tensor, how: ActivationQuant) -> tuple[torch.Tensor, torch.Tensor]:
    if how.scale is not None:
        return torch.tensor(how.scale, device=x.device), torch.tensor(how.zero, device=x.device)
    none = torch.zeros((), device=x.device)
    if how.kind == "fp8" or how.symmetric:
        return x.abs().amax(dim=2, keepdim=True) / (_FP8_MAX if how.kind == "fp8" else 127.5), none
    low, high = x.amin(dim=2, keepdim=True).clamp(max=0), x.amax(dim=2, keepdim=True).clamp(min=0)
    scale = (high - low) / 255
    return scale, (-128 - low / scale).clamp(-128, 127).round()
